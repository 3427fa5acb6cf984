"""Two engine processes on one ledger, eight clients at once; one process is killed while it decides."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_cases import LOOSE, Built, action, catalogue, go_live, strategy, user_ids
from serve_cases import shop_args

from qiance.decide.floors import discounted_price
from qiance.decide.predictor import liability_of
from qiance.domain import Audience, Channel, StrategyState
from qiance.ledger import Ledger
from serve.answers import Written
from serve.args import AppArgs
from serve.desk import DeskLostError
from serve.desk_process import ProcessDesk
from serve.slates import Call

BUDGET, DEEP = 250, 10**6
MOST, MIN_MARGIN, TERM_S = 3, 0.05, 1.0
CLIENTS, KILLED_AFTER = 8, 60
EVERYBODY = Audience("everybody")


def prepare(ledger: Ledger) -> None:
    """A budget that is soon used up, and one with plenty for offers of which some are below the floor."""
    for n in range(4):
        ledger.set_strategy_state(f"s{n}", StrategyState.PAUSED, "test", "test")
    ledger.open_budget("tight", BUDGET)
    ledger.open_budget("deep", DEEP)
    items = list(catalogue())
    deep = [
        strategy(
            20 + n,
            "deep",
            audience=EVERYBODY,
            actions=(action(items[n], Channel.MAILER, depth, f"s{20 + n}"),),
        )
        for n, depth in enumerate((0.1, 1 - items[1].unit_cost / (0.98 * items[1].price)))
    ]
    go_live(ledger, [strategy(4, "tight"), strategy(6, "tight", audience=EVERYBODY), *deep], guard=LOOSE)


class Clients:
    """Clients of engine processes; answers: what was decided, as the clients were told."""

    def __init__(self, args: AppArgs, desks: list[ProcessDesk]) -> None:
        self.args, self.desks = args, desks
        self.answers: list[Any] = []
        self.waiting = Counter[ProcessDesk]()
        self.lost = 0

    async def ask(self, seed: int, users: Sequence[str], batches: int) -> None:
        """One client: batches of one to four users, of whichever process is left."""
        rng = np.random.default_rng(seed)
        for _ in range(batches):
            desk = self.desks[int(rng.integers(len(self.desks)))]
            wanted, now = rng.integers(0, len(users), int(rng.integers(1, 5))), self.args.now()
            self.waiting[desk] += 1
            try:
                replies = await desk.decide([Call(users[n], "home", now, None, 2, None) for n in wanted])
            except DeskLostError:
                self.lost += 1
                continue
            finally:
                self.waiting[desk] -= 1
            for reply in replies:
                assert isinstance(reply, Written)
                assert set(reply.degraded) <= {"cold_start"}
                self.answers.append(json.loads(reply.body))

    async def see_one_killed(self, ledger: Ledger, pid: int) -> int:
        """All ask, and the first process is killed meanwhile; what it had leased."""
        clients = [asyncio.create_task(self.ask(client, user_ids(), 30)) for client in range(CLIENTS)]
        killed = self.desks[0]
        while len(self.answers) < KILLED_AFTER or self.waiting[killed] < 3:  # one is decided, others queue
            await asyncio.sleep(0.001)
        self.desks.remove(killed)
        killed._closing.set()  # that no other is started in its place
        os.kill(pid, signal.SIGKILL)
        left = held_by(ledger, pid)
        await asyncio.gather(*clients)
        return left

    async def use_up(self, ledger: Ledger) -> None:
        """New users ask, until the tight budget is used up to the last unit, or for long enough."""
        for round_ in range(100):
            users = [f"new-{round_}-{n}" for n in range(40)]
            await asyncio.gather(*(self.ask(client, users, 2) for client in range(CLIENTS)))
            status = ledger.budget("tight")
            if status.reserved - status.leased == BUDGET:
                return
            await asyncio.sleep(0.05)


@contextmanager
def two_desks(args: AppArgs) -> Iterator[tuple[list[ProcessDesk], int]]:
    """Two engine processes, and the first one's id."""
    with ThreadPoolExecutor(2) as pool:
        desks = list(pool.map(ProcessDesk, [args] * 2))
    with closing(desks[0]), closing(desks[1]):
        (pid,) = [child.process.pid for child in [desks[0]._child] if child]
        yield desks, pid


def check_log(ledger: Ledger, answers: list[Any]) -> Counter[str]:
    """Caps and floors hold, and every answer is in the log as it was told; what was set aside per budget."""
    items, named = catalogue(), {a.action_id: a for s in ledger.strategies() for a in s.actions}
    brief = {s.strategy_id: s.brief_id for s in ledger.strategies()}
    rows = ledger.decision_outcomes()
    logged = dict(zip(rows["decision_id"].to_pylist(), rows["action_id"].to_pylist(), strict=True))
    for answer in answers:
        name, told = answer["decision_id"], [chosen["action_id"] for chosen in answer["actions"]]
        ids = [name, *(f"{name}.{place}" for place in range(1, len(told)))]
        assert [logged[one] for one in ids] == told
    contacts, spent = Counter[str](), Counter[str]()
    for user, action_id in zip(rows["pseudonym"].to_pylist(), rows["action_id"].to_pylist(), strict=True):
        if action_id == "control":
            continue
        chosen = named[action_id]
        item = items[str(chosen.item_id)]
        paid = int(discounted_price(item.price, chosen.offer.depth))
        assert paid - item.unit_cost >= MIN_MARGIN * paid, f"{action_id} is below the floor"
        contacts[user] += 1
        spent[brief[chosen.strategy_id]] += liability_of(chosen, items)
    assert max(contacts.values()) == MOST, "no user had more, and some would have had"
    return spent


def check_budgets(ledger: Ledger, spent: Counter[str]) -> None:
    """No budget is overspent, and each has set aside what the log adds up to."""
    for name, cap in (("tight", BUDGET), ("deep", DEEP)):
        status = ledger.budget(name)
        assert status.spent + status.reserved <= cap
        assert (status.spent, status.reserved - status.leased) == (0, spent[name])


def held_by(ledger: Ledger, pid: int) -> int:
    """Minor units of the tight budget that the process has leased and not used, by the ledger."""
    query = (
        "SELECT coalesce(sum(amount - used), 0) FROM leases WHERE tenant_id = 'default' "
        f"AND budget_id = 'tight' AND holder LIKE '%%-{pid}-%%'"
    )
    with ledger.engine.connect() as connection:
        return int(connection.exec_driver_sql(query).scalar_one())


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_breaks_no_promise(
    built: Built, tmp_path: Path, request: pytest.FixtureRequest, backend: str
) -> None:
    postgres = backend == "postgresql"
    url = (
        built.fill_ledger(request.getfixturevalue("postgres")()) if postgres else built.copy_ledger(tmp_path)
    )
    args = shop_args(
        built,
        ledger_url=url,
        holdout=0.0,
        epsilon=1.0,
        min_margin=MIN_MARGIN,
        frequency_caps=[{"contacts": MOST, "days": 7}],
        leases={"term_s": TERM_S},
        request_timeout_s=60.0,  # a busy machine is no ledger that hangs
    )
    with closing(built.open_url(url)) as ledger:
        prepare(ledger)
        with two_desks(args) as (desks, pid), asyncio.Runner() as runner:
            clients = Clients(args, list(desks))
            left = runner.run(clients.see_one_killed(ledger, pid))
            assert clients.lost > 0, "it had been asked, and had not answered"
            assert left > 0, "it had money leased that is needed"
            check_budgets(ledger, check_log(ledger, clients.answers))
            runner.run(clients.use_up(ledger))
            spent = check_log(ledger, clients.answers)
            check_budgets(ledger, spent)
            assert spent["tight"] == BUDGET, "nothing of what the dead one had leased is lost"
            assert held_by(ledger, pid) == 0
