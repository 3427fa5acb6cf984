"""The simulated market: base rates, truth, state, speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from market_cases import action, grid_of_actions, small_catalogue, small_market, small_users

from qiance.decide.margin import order_margin
from qiance.domain import CONTROL, CONTROL_ACTION, Channel
from qiance.market import Market, calibrate
from qiance.market.calibrate import DISPLAY_CTR, REDEMPTION_RATE, VISIT_WITHOUT_MAIL, induced_visit_rate
from qiance.market.simulate import ContactWindow, collect_log, uniform_over


def rates(channel: Channel, depth: float) -> tuple[float, float]:
    """Mean click and conversion probability over users and items, fresh state."""
    market = small_market(2_000)
    table = market.table([action(i, channel, depth) for i in market.catalogue])
    truth = market.truth(np.arange(2_000), table)
    return float(truth.click.mean()), float(truth.conversion.mean())


def test_mail_brings_the_visits_that_hillstrom_saw() -> None:
    """15.1 to 18.3 % visited with mail, 10.6 % without (Hillstrom 2008)."""
    click, _ = rates(Channel.EMAIL, 0.0)
    visits = 1.0 - (1.0 - VISIT_WITHOUT_MAIL) * (1.0 - click)
    assert 0.151 <= visits <= 0.183
    assert click == pytest.approx(induced_visit_rate(), rel=0.15)


def test_ads_are_clicked_as_on_open_bandit() -> None:
    """0.4 to 0.7 % (Saito et al. 2021)."""
    click, _ = rates(Channel.DISPLAY, 0.0)
    assert 0.004 <= click <= 0.007
    assert click == pytest.approx(DISPLAY_CTR, rel=0.15)


def test_coupons_are_redeemed_as_in_complete_journey() -> None:
    """792 of 6,589 contacts."""
    _, conversion = rates(Channel.MAILER, 0.2)
    assert conversion == pytest.approx(REDEMPTION_RATE, rel=0.15)


def test_control_does_nothing_but_the_organic() -> None:
    market = small_market()
    truth = market.truth(np.arange(400), market.table([CONTROL_ACTION]))
    assert truth.click.max() == 0.0
    assert truth.induced.max() == 0.0
    assert truth.cost.max() == 0.0
    np.testing.assert_allclose(truth.conversion[:, 0], market.population.organic)


def test_samples_agree_with_the_truth() -> None:
    market = small_market(2_000, seed=3)
    table = market.table(grid_of_actions(market))
    users = np.arange(2_000)
    choice = np.random.default_rng(0).integers(0, len(table), 2_000)
    truth = market.truth(users, table, choice)
    sums = np.zeros(5)
    errors = np.zeros((40, 5))
    for turn in range(40):
        market.fatigue[:] = 0.0
        market.stock[:] = 0.0
        r = market.step(users, table, choice)
        errors[turn] = [x.mean() for x in (r.click, r.conversion, r.sales, r.margin, r.discount)]
    sums = errors.mean(axis=0)
    expected = [
        truth.click.mean(),
        truth.conversion.mean(),
        truth.sales.mean(),
        truth.margin.mean(),
        (truth.cost - table.contact_cost[choice]).mean(),
    ]
    spread = errors.std(axis=0) / np.sqrt(40)
    assert np.all(np.abs(sums - expected) < 4.5 * spread + 0.51), (sums, expected, spread)


@settings(max_examples=25, deadline=None)
@given(
    depth=st.sampled_from([0.05, 0.1, 0.2, 0.3]), deeper=st.sampled_from([0.35, 0.4]), row=st.integers(0, 5)
)
def test_a_deeper_offer_is_clicked_more_and_costs_more(depth: float, deeper: float, row: int) -> None:
    market = small_market(100)
    item = market.catalogue.items[row]
    table = market.table([action(item, Channel.EMAIL, depth), action(item, Channel.EMAIL, deeper)])
    truth = market.truth(np.arange(100), table)
    assert np.all(truth.click[:, 1] >= truth.click[:, 0])
    assert np.all(truth.cost[:, 1] >= truth.cost[:, 0])


def test_contacts_tire_and_rest_refreshes() -> None:
    market = small_market()
    table = market.table(grid_of_actions(market))
    users, choice = np.arange(400), np.ones(400, dtype=np.int64)
    fresh = market.truth(users, table).click[:, 1].mean()
    for _ in range(5):
        market.step(users, table, choice)
    tired = market.truth(users, table).click[:, 1].mean()
    market.advance_day(30)
    rested = market.truth(users, table).click[:, 1].mean()
    assert tired < 0.8 * fresh
    assert rested == pytest.approx(fresh, rel=0.01)


def test_buying_on_offer_fills_the_cupboard() -> None:
    market = small_market()
    table = market.table(grid_of_actions(market))
    mailed = next(n for n, a in enumerate(table.actions) if a.channel is Channel.MAILER and a.offer.depth)
    category = table.category[mailed]
    responses = market.step(np.arange(400), table, np.full(400, mailed))
    bought = responses.conversion == 1
    assert bought.any()
    assert np.all(market.stock[bought, category] == 1.0)
    assert np.all(market.stock[~bought] == 0.0)
    market.fatigue[:] = 0.0
    after = market.truth(np.arange(400), table).induced[bought, mailed]
    market.stock[:] = 0.0
    assert np.all(after < market.truth(np.arange(400), table).induced[bought, mailed])


def test_two_markets_of_one_seed_are_one_world() -> None:
    outcomes = []
    for _ in range(2):
        market = small_market(seed=5)
        table = market.table(grid_of_actions(market))
        choice = np.arange(400) % len(table)
        outcomes.append(market.step(np.arange(400), table, choice))
    np.testing.assert_array_equal(outcomes[0].sales, outcomes[1].sales)
    np.testing.assert_array_equal(outcomes[0].click, outcomes[1].click)


def test_ten_thousand_users_step_in_milliseconds() -> None:
    market = small_market(num_users=10_000)
    table = market.table(grid_of_actions(market))
    choice = np.arange(10_000) % len(table)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        market.step(np.arange(10_000), table, choice)
        times.append(time.perf_counter() - started)
    assert np.median(times) < 0.05, "a step takes about 1 ms on an idle core"


def test_the_oracle_speaks_as_a_predictor() -> None:
    market = small_market(50)
    actions = grid_of_actions(market)
    prediction = market.predict(["u3", "u7"], actions)
    assert prediction.click.shape == (2, len(actions), 1)
    np.testing.assert_allclose(prediction.uplift()[:, 0, 0], 0.0, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict(["nobody"], [CONTROL_ACTION]), "user_id: 'nobody' does not live"),
        (lambda m: m.catalogue["nothing"], "item_id: 'nothing' is not in the catalogue"),
    ],
)
def test_unknown_names_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small_market(50))  # type: ignore[operator]


def test_the_calibration_is_that_of_the_whole_population() -> None:
    users, shares = small_users(500)
    one = Market.build(users, shares, ("coffee", "cheese", "soup"), small_catalogue(), 0)
    two = calibrate.calibrate(one.population, one.coefficients)
    np.testing.assert_allclose(one.intercepts.channel, two.channel)


def test_the_log_has_true_propensities_and_counts_of_contacts() -> None:
    market = small_market(200)
    table = market.table(grid_of_actions(market))
    window = ContactWindow(200)
    everyone = np.ones((200, len(table)), dtype=bool)
    from datetime import UTC, datetime

    start = datetime(2018, 1, 2, tzinfo=UTC)
    choose = uniform_over(lambda users: everyone[users])
    log = collect_log(market, table, choose, start, 10, 150, window, np.random.default_rng(1))
    assert len(log) == 1_500
    assert np.allclose(log.propensity, 1 / len(table))
    assert np.allclose(log.probabilities.sum(axis=1), 1.0)
    contacted = table.channel[log.action] > 0
    for user in (3, 50, 199):
        mine = np.flatnonzero(log.user == user)
        for row in mine:
            earlier = mine[(log.at[mine] < log.at[row]) & (log.at[row] - log.at[mine] <= 7 * 86_400)]
            assert log.contacts_7d[row] == contacted[earlier].sum()


def test_margin_of_an_order_books_the_offered_item_at_its_cost() -> None:
    market = small_market(10)
    item = market.catalogue.items[0]
    table = market.table([CONTROL_ACTION, action(item, Channel.EMAIL, 0.2)])
    paid = table.paid[1]
    sales = np.array([0, 1_000, 1_000 + int(paid)])
    margin = order_margin(sales, *(x[[1, 0, 1]] for x in (table.depth, table.paid, table.unit_cost)), 0.28)
    assert margin.tolist() == [0, 280, round(280 + paid - item.unit_cost)]


def test_control_is_control() -> None:
    assert CONTROL_ACTION.action_id == CONTROL
    assert CONTROL_ACTION.is_control
