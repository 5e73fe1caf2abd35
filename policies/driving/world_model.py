"""The world model: what agents of a scene may do in the next seconds, seen from each of them (TrafficGamer, Fig. 11).

Agents are told by a token for every half second; a token looks at its agent's own past, at the map and the lights near it,
and at its neighbours. What it sees of them is relative to its own place and direction, so that a token is the same wherever
the scene lies, and is computed once: as time goes on, only the new ones are (as in QCNet). Modes then look at the same
things and at each other, and say where the agent will be.

Encoding half second by half second is the only way it works, in training as in rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from ...scenarios.driving.scene import Kind, Light, Line
from .tokens import POINTS, STEP, STRIDE, Batch

RELATIVE = 9  # numbers that say how something lies to who looks at it
RELATION = 32  # what a network makes of them
LIGHTS_NEAR = 4  # traffic lights that an agent looks at
METRES = 20.0  # distances are divided by it
FAR = 1e4
VECTOR = 16  # numbers that a processor takes at once: PyTorch's softmax of fewer is far slower


@dataclass(frozen=True)
class WorldModelSettings:
    """Sizes. The defaults have a million parameters; hidden=240, heads=8, decoder_layers=2: as many as QCNet, 7.7 million."""

    hidden: int = 96
    heads: int = 6
    encoder_layers: int = 2
    decoder_layers: int = 1
    modes: int = 6
    future: int = 60  # frames that are predicted
    memory: int = 10  # tokens of its own past that an agent looks at: five seconds
    neighbours: int = 16


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of `[n]` agents, `[modes]` each. In the frame of the map: metres, radians."""

    trajectory: Tensor  # [n, modes, future, 3] x, y, direction
    scale: Tensor  # [n, modes, future, 2] of the Laplace distributions of x and y, and of the direction
    logits: Tensor  # [n, modes]
    feature: Tensor  # [n, modes, hidden]

    def probability(self) -> Tensor:
        """`[n, modes]`."""
        return self.logits.softmax(-1)


@dataclass(frozen=True, eq=False)
class EncodedMap:
    """The map of a batch, projected for every layer that looks at it."""

    keys: list[Tensor]  # of each layer, [heads, pieces + 1 + states of a light, 2 * size], see `Attention.project`


@dataclass(frozen=True, eq=False)
class Memory:
    """What is known after some half seconds of `[worlds * agents]`; the last one is now."""

    pose: Tensor  # [n, moments, 3]
    there: Tensor  # [n, moments] bool
    speed: Tensor  # [n] now
    token: Tensor  # [n, hidden] now; 0 of who is not there
    keys: list[Tensor]  # of each layer that looks back, [heads, n, moments, 2 * size]
    around: Surroundings | None = None  # of now


class Attention(nn.Module):
    """Multi-head attention to few, each with a relation to who looks; then a feed-forward network.

    Relations enter keys and values through a linear map each, which is applied to queries and to weighted sums instead: there
    are fewer of these than of pairs. One more that is looked at is nothing.
    """

    def __init__(self, hidden: int, heads: int, related: bool = True) -> None:
        super().__init__()
        self.heads, self.size = heads, hidden // heads
        self.before, self.of_keys, self.between = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.query, self.key_value = nn.Linear(hidden, hidden), nn.Linear(hidden, 2 * hidden)
        if related:
            self.relation_key = nn.Parameter(torch.randn(heads, self.size, RELATION) / RELATION**0.5)
            self.relation_value = nn.Parameter(torch.randn(heads, self.size, RELATION) / RELATION**0.5)
        self.out = nn.Linear(hidden, hidden)
        self.feed = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))

    def project(self, what: Tensor) -> Tensor:
        """Keys and values, side by side, `[heads, m, 2 * size]` of what is looked at, `[m, hidden]`.

        Side by side they are picked out at once: PyTorch is slow at rows as short as those of one.
        """
        both = self.key_value(self.of_keys(what)).view(len(what), 2, self.heads, self.size)
        return both.permute(2, 0, 1, 3).reshape(self.heads, len(what), 2 * self.size)

    def forward(self, x: Tensor, what: Tensor, relation: Tensor | None, there: Tensor) -> Tensor:
        """`[n, looking, hidden]`.

        Args:
            x: `[n, looking, hidden]`.
            what: keys and values, `[heads, n, many, 2 * size]`.
            relation: `[n, many, RELATION]`; None where there is none.
            there: `[n, many]` bool.
        """
        n, looking, hidden = x.shape
        keys, values = torch.split(what, self.size, dim=-1)
        query = self.query(self.before(x)).view(n, looking, self.heads, self.size) * self.size**-0.5
        query = query.permute(2, 0, 1, 3)
        score = query @ keys.transpose(2, 3)  # [heads, n, looking, many]
        if relation is not None:
            asked = (query.flatten(1, 2) @ self.relation_key).view(self.heads, n, looking, RELATION)
            asked = asked.transpose(0, 1).reshape(n, self.heads * looking, RELATION)
            score = score + (asked @ relation.transpose(1, 2)).view(n, self.heads, looking, -1).transpose(0, 1)
        score = score.masked_fill(~there[:, None], -torch.inf)
        many = score.shape[-1]
        nothing = score.new_full((*score.shape[:-1], max(1, VECTOR - many)), -torch.inf)
        nothing[..., 0] = 0.0
        weight = torch.cat([score, nothing], dim=-1).softmax(-1)[..., :many]
        seen = weight @ values  # [heads, n, looking, size]
        if relation is not None:
            mixed = weight.transpose(0, 1).reshape(n, self.heads * looking, -1) @ relation
            mixed = mixed.view(n, self.heads, looking, RELATION).transpose(0, 1).flatten(1, 2)
            seen = seen + (mixed @ self.relation_value.transpose(1, 2)).view_as(seen)
        x = x + self.out(seen.permute(1, 2, 0, 3).reshape(n, looking, hidden))
        return x + self.feed(self.between(x))


def picked(what: Tensor, which: Tensor) -> Tensor:
    """Of keys and values `[heads, m, ...]` those that `which` `[...]` names, `[heads, ..., ...]`."""
    return what.index_select(1, which.flatten()).view(len(what), *which.shape, *what.shape[2:])


class EncoderLayer(nn.Module):
    """Looks back, at the map, and at neighbours."""

    time: Attention
    map: Attention
    others: Attention

    def __init__(self, settings: WorldModelSettings) -> None:
        super().__init__()
        self.time, self.map, self.others = (Attention(settings.hidden, settings.heads) for _ in range(3))


class DecoderLayer(EncoderLayer):
    """What modes look at, and each other."""

    modes: Attention

    def __init__(self, settings: WorldModelSettings) -> None:
        super().__init__(settings)
        self.modes = Attention(settings.hidden, settings.heads, related=False)


def mlp(numbers: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(numbers, hidden), nn.SiLU(), nn.Linear(hidden, out))


class WorldModel(nn.Module):
    """`encode_map` once, `observe` for each half second, `predict` whenever it is asked."""

    encoder: list[EncoderLayer]  # a ModuleList
    decoder: list[DecoderLayer]
    basis: Tensor  # [knots, frames]

    def __init__(self, settings: WorldModelSettings | None = None) -> None:
        super().__init__()
        self.settings = given = settings or WorldModelSettings()
        hidden = given.hidden
        self.piece = mlp(2 * POINTS, hidden, hidden)
        self.piece_kind = nn.Embedding(len(Line) + 1, hidden)
        self.light = nn.Embedding(len(Light), hidden)
        self.pieces = Attention(hidden, given.heads)
        self.motion = mlp(5 * STRIDE + 3, hidden, hidden)
        self.kind = nn.Embedding(len(Kind), hidden)
        self.to_piece, self.to_time, self.to_map, self.to_others = (mlp(RELATIVE, 64, RELATION) for _ in range(4))
        self.encoder = cast(list[EncoderLayer], nn.ModuleList(EncoderLayer(given) for _ in range(given.encoder_layers)))
        self.decoder = cast(list[DecoderLayer], nn.ModuleList(DecoderLayer(given) for _ in range(given.decoder_layers)))
        self.mode = nn.Parameter(torch.randn(given.modes, hidden))
        self.start = mlp(hidden, hidden, hidden)
        knots = given.future // STRIDE
        self.way = mlp(hidden, 2 * hidden, 3 * knots)
        self.spread = mlp(hidden, 2 * hidden, 2 * knots)
        self.logit = mlp(hidden, hidden, 1)
        self.register_buffer("basis", _basis(knots), persistent=False)
        for last in (cast(nn.Linear, self.way[-1]), cast(nn.Linear, self.spread[-1])):
            nn.init.normal_(last.weight, std=0.02)
            nn.init.zeros_(last.bias)

    def encode_map(self, batch: Batch) -> EncodedMap:
        """Of all scenes of a batch; the same for all copies of a scene."""
        token = self.piece(batch.shape.flatten(1) / METRES) + self.piece_kind(batch.piece_kind)
        relation = self.to_piece(relative(batch.pieces, batch.pieces[batch.around]))
        around = picked(self.pieces.project(token), batch.around)
        token = self.pieces(token[:, None], around, relation, batch.around < len(token) - 1)[:, 0]
        layers = [layer.map for layer in self.encoder] + [layer.map for layer in self.decoder]
        return EncodedMap([one.project(torch.cat([token, self.light.weight])) for one in layers])

    def observe(self, batch: Batch, known: EncodedMap, frame: int, memory: Memory | None) -> Memory:
        """What is known in a frame of the batch.

        Args:
            frame: `STRIDE` or later, whose place is looked at; what agents did in the `STRIDE` frames before it is its token.
            memory: of `STRIDE` frames before; None: nothing is known.
        """
        now, there = batch.agents[:, :, frame].flatten(0, 1), batch.there[:, :, frame].flatten()
        pose = torch.where(there[:, None], now[:, :3], 0.0)
        rows = torch.nonzero(there)[:, 0]
        x = (self.motion(_motion(batch, frame).flatten(0, 1)[rows]) + self.kind(batch.kind.flatten()[rows]))[:, None]
        past_pose = pose[:, None] if memory is None else torch.cat([memory.pose, pose[:, None]], 1)
        past_there = there[:, None] if memory is None else torch.cat([memory.there, there[:, None]], 1)
        past_pose, past_there = past_pose[:, -self.settings.memory :], past_there[:, -self.settings.memory :]
        surroundings = self._surroundings(batch, frame, rows, pose, there, past_pose)
        keys = []
        for i, layer in enumerate(self.encoder):
            keys.append(self._remember(layer.time, x[:, 0], rows, len(pose), memory, i))
            x = self._look(layer, x, rows, keys[-1], past_there, surroundings, known, i)
            x = self._look_at_others(layer.others, x, x[:, 0], rows, len(pose), surroundings)
        for i, later in enumerate(self.decoder, len(self.encoder)):
            keys.append(self._remember(later.time, x[:, 0], rows, len(pose), memory, i))
        token = x.new_zeros(len(pose), self.settings.hidden).index_put((rows,), x[:, 0])
        return Memory(past_pose, past_there, now[:, 3], token, keys, surroundings)

    def predict(self, batch: Batch, known: EncodedMap, frame: int, memory: Memory, rows: Tensor) -> Prediction:
        """What agents may do after a frame that was the last to be observed.

        Args:
            rows: `[n]` of whom is asked: indices into `[worlds * agents]` of those who are there.
        """
        pose, there = memory.pose[:, -1], memory.there[:, -1]
        surroundings = memory.around
        if surroundings is None or not torch.equal(surroundings.rows, rows):  # others than were observed
            surroundings = self._surroundings(batch, frame, rows, pose, there, memory.pose)
        x = self.start(memory.token[rows])[:, None] + self.mode
        for i, layer in enumerate(self.decoder, len(self.encoder)):
            x = self._look(layer, x, rows, memory.keys[i], memory.there, surroundings, known, i)
            everybody = torch.arange(len(pose), device=rows.device)
            x = self._look_at_others(layer.others, x, memory.token, everybody, len(pose), surroundings)
            n, modes = x.shape[:2]
            keys = layer.modes.project(x.flatten(0, 1)).view(-1, n, modes, 2 * layer.modes.size)
            x = layer.modes(x, keys, None, torch.ones(n, modes, dtype=torch.bool, device=x.device))
        return self._trajectories(x, pose[rows], memory.speed[rows])

    def _trajectories(self, x: Tensor, pose: Tensor, speed: Tensor) -> Prediction:
        """At knots `STRIDE` frames apart, what speeds and the turning rate change by from those of now; linear between."""
        n, modes, _ = x.shape
        knots = len(self.basis)
        along, left, turn = (self.way(x).view(n, modes, 3, knots) @ self.basis).unbind(2)
        time = STEP * torch.arange(1, self.settings.future + 1, device=x.device)
        along = along + speed[:, None, None] * time
        cos, sin = torch.cos(pose[:, 2])[:, None, None], torch.sin(pose[:, 2])[:, None, None]
        trajectory = torch.stack(
            [
                pose[:, 0, None, None] + along * cos - left * sin,
                pose[:, 1, None, None] + along * sin + left * cos,
                pose[:, 2, None, None] + turn,
            ],
            dim=-1,
        )
        wide = (elu(self.spread(x).view(n, modes, 2, knots)) + 1.0) @ self.basis
        scale = torch.stack([0.05 + wide[:, :, 0], 0.02 + 0.1 * wide[:, :, 1]], dim=-1)
        return Prediction(trajectory, scale, self.logit(x)[..., 0], x)

    def _remember(
        self, attention: Attention, x: Tensor, rows: Tensor, count: int, memory: Memory | None, layer: int
    ) -> Tensor:
        """Keys and values of the own past with those of now, `[heads, n, moments, 2 * size]`."""
        now = _spread(attention.project(x), rows, count)[:, :, None]
        if memory is None:
            return now
        past = memory.keys[layer]
        return torch.cat([past[:, :, max(0, past.shape[2] + 1 - self.settings.memory) :], now], dim=2)

    def _look(
        self, layer: EncoderLayer, x: Tensor, rows: Tensor, past: Tensor, there: Tensor,
        around: Surroundings, known: EncodedMap, number: int,
    ) -> Tensor:  # fmt: skip
        """Back, and at the map and the lights."""
        x = layer.time(x, picked(past, rows), around.time, there[rows])
        return layer.map(x, picked(known.keys[number], around.looked), around.map, around.map_there)

    def _look_at_others(
        self, attention: Attention, x: Tensor, token: Tensor, of: Tensor, count: int, around: Surroundings
    ) -> Tensor:
        """At tokens of others, those `of` all rows."""
        keys = _spread(attention.project(token), of, count)
        return attention(x, picked(keys, around.others), around.to_others, around.others_there)

    def _surroundings(
        self, batch: Batch, frame: int, rows: Tensor, pose: Tensor, there: Tensor, past: Tensor
    ) -> Surroundings:
        """How what `rows` look at lies to them: the own past `[n, moments, 3]`, the map, and who is there."""
        worlds, agents = batch.size.shape[:2]
        own = pose[rows]
        pieces = batch.near_pieces(pose[:, :2].view(worlds, agents, 2)).flatten(0, 1)[rows]
        world = rows // agents
        state = batch.light_state[world, :, frame]
        off = (batch.lights[world, :, :2] - own[:, None, :2]).square().sum(-1)
        off = torch.where(state >= 0, off, torch.inf)
        near, which = off.topk(min(LIGHTS_NEAR, off.shape[1]), largest=False)
        lights = batch.lights[world].gather(1, which[..., None].expand(-1, -1, 3))
        xy = torch.where(there[:, None], pose[:, :2], FAR).view(worlds, agents, 2)
        apart = torch.cdist(xy, xy, compute_mode="donot_use_mm_for_euclid_dist")
        apart = apart + FAR * torch.eye(agents, device=xy.device)
        apart = apart.flatten(0, 1)[rows]
        closest, others = apart.topk(min(self.settings.neighbours, agents), largest=False)
        others = others + (world * agents)[:, None]
        moments = past.shape[1]
        age = STEP * STRIDE * torch.arange(moments - 1, -1, -1, device=pose.device, dtype=pose.dtype)
        return Surroundings(
            rows=rows,
            time=self.to_time(relative(own, past[rows], age.expand(len(rows), moments))),
            looked=torch.cat([pieces, len(batch.pieces) + state.gather(1, which).clamp_min(0)], dim=1),
            map=self.to_map(relative(own, torch.cat([batch.pieces[pieces], lights], dim=1))),
            map_there=torch.cat([pieces < len(batch.pieces) - 1, near < torch.inf], dim=1),
            others=others,
            to_others=self.to_others(relative(own, pose[others])),
            others_there=closest < FAR / 2,
        )


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What `[n]` agents look at."""

    rows: Tensor  # [n] who they are: indices into [worlds * agents]
    time: Tensor  # [n, moments, RELATION]
    looked: Tensor  # [n, MAP_NEAR + lights] pieces of the map and states of lights, as in `EncodedMap`
    map: Tensor  # [n, MAP_NEAR + lights, RELATION]
    map_there: Tensor  # [n, MAP_NEAR + lights]
    others: Tensor  # [n, neighbours] indices into [worlds * agents]
    to_others: Tensor  # [n, neighbours, RELATION]
    others_there: Tensor  # [n, neighbours]


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """`[heads, count, size]` with `values` `[heads, n, size]` in some rows and 0 in the others."""
    return values.new_zeros(len(values), count, values.shape[2]).index_copy(1, rows, values)


def relative(own: Tensor, other: Tensor, age: Tensor | None = None) -> Tensor:
    """`[n, many, RELATIVE]`: how poses `[n, many, 3]` lie to `own` `[n, 3]`, wherever both are.

    Args:
        age: `[n, many]` seconds that they are old.
    """
    dx, dy = (other[..., :2] - own[:, None, :2]).unbind(-1)
    cos, sin = torch.cos(own[:, 2])[:, None], torch.sin(own[:, 2])[:, None]
    x, y = (dx * cos + dy * sin) / METRES, (dy * cos - dx * sin) / METRES
    apart = (x.square() + y.square() + 1e-6).sqrt()
    turn = other[..., 2] - own[:, None, 2]
    old = torch.zeros_like(x) if age is None else age
    return torch.stack(
        [x.clamp(-5, 5), y.clamp(-5, 5), apart.clamp_max(5), torch.log1p(10 * apart), x / apart, y / apart,
         torch.cos(turn), torch.sin(turn), old], dim=-1,
    )  # fmt: skip


def _motion(batch: Batch, frame: int) -> Tensor:
    """`[worlds, agents, 5 * STRIDE + 3]`: of each of the frames before, where it was seen from now; speed and size."""
    now = batch.agents[:, :, frame]
    cos, sin = torch.cos(now[..., 2])[..., None], torch.sin(now[..., 2])[..., None]
    before, seen = batch.agents[:, :, frame - STRIDE : frame], batch.there[:, :, frame - STRIDE : frame]
    dx, dy = (before[..., :2] - now[:, :, None, :2]).unbind(-1)
    turn = before[..., 2] - now[..., None, 2]
    told = torch.stack(
        [dx * cos + dy * sin, dy * cos - dx * sin, torch.cos(turn), torch.sin(turn), torch.ones_like(dx)], -1
    )
    told = (told * seen[..., None]).flatten(2)
    return torch.cat([told, now[..., 3:] / 10.0, batch.size / 5.0], dim=-1)


def _basis(knots: int) -> Tensor:
    """`[knots, frames]`: the way until each frame of who has speed 1 at one knot, 0 at the others and in the beginning."""
    time = STEP * torch.arange(0, knots * STRIDE + 1)
    at = STEP * STRIDE * torch.arange(1, knots + 1)
    speed = (1 - (time - at[:, None]).abs() / (STEP * STRIDE)).clamp_min(0.0)
    return (STEP * (speed[:, 1:] + speed[:, :-1]) / 2).cumsum(-1)
