"""The environment that a log makes: episodes of an ensemble of fitted models, side by side as arrays."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from rllib.lockstep import Floats, Floats32, Info, LockstepEnv
from rllib.model_fit import Ensemble
from rllib.tasks import Constant, Dials, Policy, Task


class ModelVectorEnv(LockstepEnv):
    """Episodes of `rllib.model_fit.Ensemble`, thousands side by side.

    An episode follows one member from its first day to its last, the members in turn, so that what a member
    gets wrong adds up as it would in truth and returns of members differ as much as the log leaves open
    (trajectory sampling TS∞ of Chua et al., 2018). It starts from the features of a logged first day.

    ## Action
    The task's dials, `Box(-1, 1, (k,), float32)`.

    ## Observation
    The task's features, within those of the log.

    ## Reward
    r − penalty · σ · u: what the member expects, with the residual of a held-out day; σ, the standard
    deviation of logged daily rewards; and u, the members' disagreement (`Ensemble.live`). Policies that stay
    where the log has been are left alone, others pay for what is not known there. Yu et al., "MOPO:
    Model-based Offline Policy Optimization" (2020), takes off λ·u with the members' own estimate of their
    error for u; disagreement of their means is that of Kidambi et al., "MOReL" (2020). `info` has `reward`,
    without the penalty, and `disagreement`.

    ## Episode end
    Terminates after as many days as the log's episodes have; it is never truncated.

    ## Arguments
    num_envs: episodes at once. dials: the task's space. ensemble: of the log. penalty: as above.
    """

    def __init__(
        self, num_envs: int, dials: gymnasium.spaces.Box, ensemble: Ensemble, penalty: float
    ) -> None:
        self.ensemble, self.penalty = ensemble, penalty
        self.single_action_space = dials
        self.single_observation_space = gymnasium.spaces.Box(ensemble.low.numpy(), ensemble.high.numpy())
        self.member = torch.arange(num_envs) % ensemble.members
        super().__init__(num_envs, ensemble.horizon)

    def _begin(self) -> Floats32:
        logged = self.np_random.integers(0, len(self.ensemble.first), self.num_envs)
        self._seen = self.ensemble.first[torch.from_numpy(logged)]
        return self._seen.numpy().copy()

    def _live(self, actions: Floats) -> tuple[Floats32, Floats, Info]:
        draw = self.np_random.integers(0, self.ensemble.residual.shape[2], self.num_envs)
        dials = torch.from_numpy(actions.astype(np.float32))
        with torch.no_grad():
            self._seen, reward, apart = self.ensemble.live(
                self._seen, dials, self.day, self.member, torch.from_numpy(draw)
            )
        brought, disagreement = (x.numpy().astype(np.float64) for x in (reward, apart))
        lost = self.penalty * self.ensemble.unit * disagreement
        info = {"reward": brought, "disagreement": disagreement}
        return self._seen.numpy().copy(), brought - lost, info


class ModelTask:
    """A task with `ModelVectorEnv` in place of its environment: what can be planned in can plan here."""

    def __init__(self, task: Task, ensemble: Ensemble, penalty: float) -> None:
        assert isinstance(task.dials, gymnasium.spaces.Box)
        self.name, self.scale, self.explore, self.dials = task.name, task.scale, task.explore, task.dials
        self._task, self._ensemble, self._penalty = task, ensemble, penalty

    def make(self, num_envs: int) -> ModelVectorEnv:
        """The environment of `num_envs` episodes."""
        return ModelVectorEnv(num_envs, self.dials, self._ensemble, self._penalty)

    def features(self, observations: Floats32) -> Floats32:
        """The observations, which are the task's features."""
        return observations

    def act(self, observations: Floats32, dials: Dials) -> Floats32:
        """The dials, within [−1, 1]."""
        return np.clip(dials, -1.0, 1.0).astype(np.float32)

    def rules(self) -> dict[str, Policy]:
        """None: rules set the task's actions, which a log does not show."""
        return {}

    def constants(self) -> Dials:
        """The task's."""
        return self._task.constants()

    def cautious(self) -> Constant:
        """The task's."""
        return Constant(self, self._task.cautious().dials)
