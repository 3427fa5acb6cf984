"""The market as environments; policies that pace budgets and plan promotions, trained there with RLlib."""

from __future__ import annotations


def register() -> None:
    """Register `qiance/SalesPromotion-v0` and `qiance/Promotion-v0` with Gymnasium; twice does no harm.

    Both can be had alone (`gymnasium.make`) and vectorised (`gymnasium.make_vec`, whose default for them is
    their own vector form).
    """
    import gymnasium

    for name, one, many in (
        ("SalesPromotion", "rllib.sales:SalesEnv", "rllib.sales:SalesVectorEnv"),
        ("Promotion", "rllib.promotion:PromotionEnv", "rllib.promotion:PromotionVectorEnv"),
    ):
        if f"qiance/{name}-v0" not in gymnasium.registry:
            gymnasium.register(f"qiance/{name}-v0", entry_point=one, vector_entry_point=many)
