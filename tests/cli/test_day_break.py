"""A simulated day begins only when the pacer has set its price, as a real one does."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qiance.cli.loop.live import DayBreak, ServiceError
from qiance.ledger import Ledger

START = datetime(2026, 5, 4, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", key=b"k" * 32)


async def pacer(ledger: Ledger, after_s: float) -> float:
    """Sets a price some time after the clock began to move; when it did."""
    while ledger.clock() is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(after_s)
    ledger.set_versions(shadow_price=0.5, by="pacer")
    return time.monotonic()


def test_the_day_waits_for_its_price(ledger: Ledger) -> None:
    async def run() -> tuple[float, float]:
        slow = asyncio.create_task(pacer(ledger, 0.3))
        await DayBreak(ledger, days=3, patience_s=10.0)(0, START)
        return await slow, time.monotonic()

    priced, begun = asyncio.run(run())
    assert priced <= begun
    assert ledger.clock() == START


def test_who_is_not_there_to_set_it_is_named(ledger: Ledger) -> None:
    with pytest.raises(ServiceError, match="pacer set no price for day 2 within 0 s"):
        asyncio.run(DayBreak(ledger, days=3, patience_s=0.1)(2, START))


@pytest.mark.parametrize("days", [0, 2])
def test_days_without_a_plan_begin_at_once(ledger: Ledger, days: int) -> None:
    later = START + timedelta(days=2)
    asyncio.run(DayBreak(ledger, days, patience_s=0.0)(2, later))
    assert ledger.clock() == later
