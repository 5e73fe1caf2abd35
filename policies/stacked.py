"""DQN and IQL of all vehicles at once: one small network per vehicle, their parameters stacked.

A state is a road, one-hot; an action is one of the road's connections in order, a slot. So the first layer of a network is
a table of rows, one per road, and a pass over all roads sees all transitions of the vehicle's data set (MASDiff, A.1):

    output[a, s] = sum over h of W[a, h] tanh(E[h, s]) + b[a]

With full batches there is nothing to sample, and what a target network says changes only when it is renewed, so its
outputs are kept in place of its weights. The gradient is written out (three products per step) and Adam takes one fused
step over all parameters of a stack: a step costs a vehicle microseconds, where a module of its own costs hundreds.
tanh, because units of a ReLU that fall silent on a road never come back: no other road shares them.

A vehicle's rewards are divided by their root mean square and its Q is multiplied by it, so that one learning rate serves
all. All vehicles start from one initial network: what is learnt does not depend on who else is in the stack.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scenarios.errors import InputError
from ..scenarios.network import RoadNetwork
from .value_iteration import state_values

Array = NDArray[np.float32]
RENEWED = 5  # updates between two target networks
LANES = 16  # vehicles in a stack are a multiple: a kernel's scalar remainder would round the last vehicles differently
# Parameters, gradients and moments of a stack on the CPU. Measured on the town: a quarter of it takes 1.6 (dqn) to 1.9 (iql)
# times as long, as calls of torch outweigh their work; up to twelve times of it takes as long, within the noise.
STACK_BYTES = 4 * 2**20
Q_MOMENTS = (0.9, 0.999)  # Adam's
# Above its expectile V is pulled back 1 / (1 - expectile) times as weakly as it was pushed up: Adam must forget the push.
V_MOMENTS = (0.9, 0.95)


class StackedNetworks:
    """Networks of one shape, one per vehicle, and their Adam.

    Args:
        vehicles, roads, hidden, slots: the shape; outputs are `[vehicles, slots, roads]`.
        rate: learning rate of the first step; it falls linearly to zero over `updates` steps.
        moments: Adam's betas.
    """

    def __init__(
        self,
        vehicles: int,
        roads: int,
        hidden: int,
        slots: int,
        rate: float,
        updates: int,
        moments: tuple[float, float],
        seed: int,
        device: torch.device,
    ) -> None:
        random = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
        first = [
            torch.randn((hidden, roads), generator=random),
            torch.randn((slots, hidden), generator=random) / hidden**0.5,
            torch.zeros((slots, 1)),
        ]
        # One flat tensor, part by part, so that Adam takes one step over everything; the parts are views of it.
        flat = torch.cat([part.expand(vehicles, *part.shape).reshape(-1) for part in first]).to(device)
        self._flat = torch.nn.Parameter(flat, requires_grad=False)
        self._flat.grad = torch.zeros_like(flat)
        sizes = [vehicles * part.numel() for part in first]
        shapes = [(vehicles, *part.shape) for part in first]
        parts, gradients = torch.split(flat, sizes), torch.split(self._flat.grad, sizes)
        self.weights = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        self.gradients = [part.view(shape) for part, shape in zip(gradients, shapes, strict=True)]
        self._hidden = torch.empty_like(self.weights[0])
        self._outputs = torch.empty((vehicles, slots, roads), device=device)
        self._adam = torch.optim.Adam([self._flat], lr=rate, betas=moments, fused=True)
        self._rate, self._updates, self._done = rate, updates, 0

    def outputs(self) -> Tensor:
        """`[vehicles, slots, roads]`; the next call writes into the same tensor."""
        rows, heads, bias = self.weights
        torch.tanh(rows, out=self._hidden)
        return torch.baddbmm(bias, heads, self._hidden, out=self._outputs)

    def backward(self, error: Tensor) -> None:
        """Gradients for `error [vehicles, slots, roads]`, the derivative of the loss by the last outputs."""
        rows, heads, bias = self.gradients
        torch.bmm(error, self._hidden.transpose(1, 2), out=heads)
        torch.sum(error, 2, keepdim=True, out=bias)
        torch.bmm(self.weights[1].transpose(1, 2), error, out=rows)
        torch.ops.aten.tanh_backward.grad_input(rows, self._hidden, grad_input=rows)

    def step(self, error: Tensor) -> None:
        """One step of Adam down the gradients for `error`, see `backward`."""
        self.backward(error)
        self._adam.param_groups[0]["lr"] = self._rate * (1.0 - self._done / self._updates)
        self._adam.step()
        self._done += 1


class StackedDqn:
    """`dqn`: Q regresses on `r + gamma max_a' Q_target(s', a')`, the target renewed every few updates (MASDiff, A.1).

    Args:
        network: roads and allowed connections.
        discount: gamma in [0, 1); the closer to 1, the more updates it takes.
        hidden: units of each network; two for each connection of a road, or more.
        updates: gradient steps, each on all transitions.
        rate: learning rate of the first one.
        device: cpu, cuda or cuda:N. On the CPU stacks fit its cache; elsewhere all vehicles are one stack.
        seed: of the initial network.

    Raises:
        InputError: the device is not here.
        ValueError: the discount is out of range.
    """

    temperature = 0.0  # the policy is greedy
    networks = 1  # per vehicle

    def __init__(
        self,
        network: RoadNetwork,
        discount: float,
        hidden: int,
        updates: int,
        rate: float,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        if not 0.0 <= discount < 1.0:
            raise ValueError(f"discount must lie in [0, 1), got {discount}")
        self.device = _present(device)
        self._network, self._discount = network, discount
        self._hidden, self._updates, self._rate, self._seed = hidden, updates, rate, seed
        source = network.connections[:, 0].astype(np.int64)
        self._roads = network.road_count
        self._slots = int(np.diff(network.first).max(initial=0))
        cells = self._slots * self._roads
        cell = (np.arange(source.size) - network.first[source]) * self._roads + source  # of each connection: slot, road
        following, known, allowed = np.zeros(cells, np.int64), np.zeros(cells, np.float32), np.zeros(cells, bool)
        following[cell], known[cell], allowed[cell] = network.to, 1.0, network.allowed
        self._cell, self._following = self._on_device(cell), self._on_device(following)
        self._known = self._on_device(known).view(self._slots, self._roads)
        self._allowed = self._on_device(allowed).view(self._slots, self._roads)

    def _on_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    @property
    def stack(self) -> int:
        """Vehicles trained side by side on the CPU."""
        each = self._roads * self._hidden + (self._hidden + 1) * self._slots
        return LANES * max(1, STACK_BYTES // (LANES * self.networks * 4 * 4 * each))

    @torch.no_grad()
    def q(self, rewards: Array) -> Array:
        """See `OfflineLearner.q`; approximate."""
        if not np.isfinite(rewards).all():
            raise ValueError("rewards must be finite")
        learnt = np.empty(rewards.shape, np.float32)
        if not learnt.size:
            return learnt
        size = self.stack if self.device.type == "cpu" else len(rewards)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # a stack is too little for more, and the workers have no more
        try:
            self._learn(rewards, learnt, size)
        finally:
            torch.set_num_threads(threads)
        return learnt

    def _learn(self, rewards: Array, learnt: Array, size: int) -> None:
        """Writes Q of all vehicles, stack after stack."""
        for start in range(0, len(rewards), size):
            rows = rewards[start : start + size]
            given = torch.zeros((-(-len(rows) // LANES) * LANES, rewards.shape[1]), device=self.device)
            given[: len(rows)] = torch.from_numpy(np.asarray(rows, np.float32))
            scale = given.square().mean(1).sqrt()[:, None, None]
            table = torch.zeros((len(given), self._slots * self._roads), device=self.device)
            table[:, self._cell] = given
            table = table.view(len(given), self._slots, self._roads)
            found = self._train(table / torch.where(scale > 0, scale, 1.0)) * scale
            learnt[start : start + size] = found[: len(rows)].flatten(1)[:, self._cell].cpu().numpy()

    def values(self, q: Array) -> Array:
        """See `OfflineLearner.values`."""
        return state_values(q, self._network.first, self._network.allowed)

    def _networks(self, vehicles: int, slots: int, moments: tuple[float, float], seed: int) -> StackedNetworks:
        return StackedNetworks(
            vehicles, self._roads, self._hidden, slots, self._rate, self._updates, moments, seed, self.device
        )

    def _backup(self, rewards: Tensor, values: Tensor) -> Tensor:
        """`r + gamma V(s')` of values `[vehicles, roads]`, `[vehicles, slots, roads]`."""
        following = values.index_select(1, self._following).view(rewards.shape)
        return torch.add(rewards, following, alpha=self._discount)

    def _train(self, rewards: Tensor) -> Tensor:
        """Q of rewards `[vehicles, slots, roads]`."""
        q = self._networks(len(rewards), self._slots, Q_MOMENTS, self._seed)
        ends = ~self._allowed.any(0)
        never = torch.zeros_like(self._known).masked_fill_(~self._allowed & ~ends, -torch.inf)
        wanted = rewards
        for update in range(self._updates):
            outputs = q.outputs()
            if update % RENEWED == 0:
                best = (outputs + never).amax(1).masked_fill_(ends, 0.0)
                wanted = self._backup(rewards, best)
            q.step((outputs - wanted).mul_(self._known))
        return q.outputs()


class StackedIql(StackedDqn):
    """`iql`: implicit Q-learning (Kostrikov, Nair and Levine 2022), with the greedy policy of Q.

    V(s) regresses on Q_target(s, a) over the allowed actions with the loss `|expectile - 1(u < 0)| u^2`, u = Q_target - V
    (Eq. 5); Q regresses on `r + gamma V(s')` (Eq. 6). V never takes the maximum over actions; as the expectile goes to 1 it
    becomes it, and the fixed point that of `dqn`. Below 1, V lies below the maximum by about (1 - expectile) times the
    action gaps, and Q by that over 1 - gamma.
    """

    networks = 2

    def __init__(
        self,
        network: RoadNetwork,
        discount: float,
        hidden: int,
        updates: int,
        rate: float,
        device: str = "cpu",
        seed: int = 0,
        expectile: float = 0.995,
    ) -> None:
        super().__init__(network, discount, hidden, updates, rate, device, seed)
        if not 0.5 <= expectile < 1.0:
            raise ValueError(f"expectile must lie in [0.5, 1), got {expectile}")
        self._expectile = expectile

    def _train(self, rewards: Tensor) -> Tensor:
        q = self._networks(len(rewards), self._slots, Q_MOMENTS, self._seed)
        v = self._networks(len(rewards), 1, V_MOMENTS, self._seed + 1)
        goes_on = self._allowed.any(0).float()
        above, below = self._allowed * self._expectile, self._allowed * (1.0 - self._expectile)
        target = rewards
        for update in range(self._updates):
            outputs = q.outputs()
            if update % RENEWED == 0:
                target = outputs.clone()
            values = v.outputs()
            wanted = self._backup(rewards, values[:, 0] * goes_on)
            short = target - values
            v.step(-(torch.where(short < 0, below, above) * short).sum(1, keepdim=True))
            q.step((outputs - wanted).mul_(self._known))
        return q.outputs()


def _present(name: str) -> torch.device:
    """The device, if it is here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"learner.device: {name!r} cannot be used here ({reason}); set learner.device: cpu") from error
    return device
