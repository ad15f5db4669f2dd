"""What autograd keeps of a forward pass: a block is walked through once, operation by operation, in numbers.

Each rule is that of the operation's backward formula in PyTorch: a product keeps the factor that the other's gradient
needs, a frozen layer keeps no input, a tensor that several operations keep is kept once. What a gradient does not
reach is not kept at all, which is why the first block of an adapter training keeps less than the others.
"""

from dataclasses import dataclass
from typing import Final, Literal

from engine.estimate.architecture import Architecture, LinearLayer

Method = Literal["lora", "qlora", "full"]
METHODS: Final[tuple[Method, ...]] = ("lora", "qlora", "full")
BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}
_FLOAT: Final = 4


@dataclass(frozen=True)
class Arithmetic:
    """In which numbers a training computes."""

    weights: int
    """Bytes of a frozen or trained base weight, where it is not quantised."""
    autocast: int | None
    """Bytes of what matrix products are cast to; None: they take what they are given."""
    bits: int | None = None
    """Of the quantised linear layers; None: they are not quantised."""

    @property
    def stream(self) -> int:
        """Bytes of a value of the residual stream: those of the embedding it starts from."""
        return self.weights


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded to its longest row."""

    rows: int
    length: int
    padded: bool
    """Whether rows differ in length: then a mask is kept for every block."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Adapters:
    """On which layers, of which rank; their weights are float32."""

    targets: tuple[LinearLayer, ...]
    r: int
    dropout: float


@dataclass(eq=False)
class _Tensor:
    """One tensor of the walk; two are the same only when they share memory."""

    values: int
    size: int
    grad: bool

    @property
    def bytes(self) -> int:
        return self.values * self.size


class Walk:
    """Walks through blocks and adds up what is kept."""

    def __init__(
        self, architecture: Architecture, batch: Batch, arithmetic: Arithmetic, adapters: Adapters | None, on_gpu: bool
    ) -> None:
        self._a, self._batch, self._arithmetic = architecture, batch, arithmetic
        self._adapters = adapters
        self._on_gpu = on_gpu
        self._trains_base = adapters is None
        self._kept: dict[int, _Tensor] = {}

    def block(self, *, reached: bool) -> int:
        """Bytes that one block keeps; `reached`: gradients flow into its input."""
        self._kept = {}
        stream = self._tensor(self._a.hidden, self._arithmetic.stream, reached)
        match self._a.family:
            case "decoder":
                self._feed_forward(self._attention(stream))
            case "inl":
                self._inl(stream)
            case "other":
                self._layers_alone(stream)
        return sum(tensor.bytes for tensor in self._kept.values())

    def last_norm(self) -> int:
        """Bytes that the norm before the head keeps."""
        self._kept = {}
        self._norm(self._tensor(self._a.hidden, self._arithmetic.stream, True), self._a.hidden)
        return sum(tensor.bytes for tensor in self._kept.values())

    def _tensor(self, per_token: int, size: int, grad: bool) -> _Tensor:
        return _Tensor(per_token * self._batch.tokens, size, grad)

    def _keep(self, tensor: _Tensor) -> None:
        self._kept[id(tensor)] = tensor

    def _cast(self, tensor: _Tensor, size: int | None) -> _Tensor:
        return tensor if size in (None, tensor.size) else _Tensor(tensor.values, size or tensor.size, tensor.grad)

    def _attention(self, stream: _Tensor) -> _Tensor:
        a = self._a
        query_size, key_size = a.heads * a.head_dim, a.kv_heads * a.head_dim
        normed = self._norm(stream, a.hidden)
        if a.fused:
            query = key = value = self._linear(normed, "self_attn.qkv_proj")
        else:
            query = self._linear(normed, "self_attn.q_proj")
            key = self._linear(normed, "self_attn.k_proj")
            value = self._linear(normed, "self_attn.v_proj")
        if a.query_norm:
            query, key = self._norm(query, a.head_dim), self._norm(key, a.head_dim)
        # The rotation needs only its angles for the backward pass, and these are shared by all blocks.
        angles = max(stream.size, query.size)
        rotated = self._tensor(query_size, angles, query.grad), self._tensor(key_size, angles, key.grad)
        mixed = self._scores(*rotated, value)
        if a.fused:
            # Its queries lie head by head, and so does what comes out: it is copied to lie token by token.
            mixed = self._tensor(query_size, mixed.size, mixed.grad)
        out = self._linear(mixed, "self_attn.o_proj")
        return self._add(stream, self._norm(out, a.hidden) if a.sandwich else out)

    def _scores(self, query: _Tensor, key: _Tensor, value: _Tensor) -> _Tensor:
        """Scaled dot products, in one kernel unless the model squashes them."""
        a, batch, lower = self._a, self._batch, self._arithmetic.autocast
        query, key, value = (self._cast(tensor, lower) for tensor in (query, key, value))
        grad = query.grad or key.grad or value.grad
        out = self._tensor(a.heads * a.head_dim, query.size, grad)
        if not grad:
            return out
        grid = batch.rows * batch.length * batch.length
        # With a mask, or outside the fused kernel, keys and values are first repeated for every head; to the kernel a
        # single one of them is a view.
        repeated = a.heads != a.kv_heads and (a.softcap or (batch.padded and a.kv_heads > 1))
        for tensor in (key, value):
            self._keep(self._tensor(a.heads * a.head_dim, tensor.size, True) if repeated else tensor)
        self._keep(query)
        if a.softcap:
            self._keep(_Tensor(grid * a.heads, query.size, True))
            self._keep(_Tensor(grid * a.heads, _FLOAT, True))
            if query.size != _FLOAT:
                self._keep(_Tensor(grid * a.heads, query.size, True))
            return out
        self._keep(out)
        self._keep(self._tensor(a.heads, _FLOAT, True))
        if batch.padded:
            self._keep(_Tensor(grid, query.size, False))
        return out

    def _feed_forward(self, stream: _Tensor) -> _Tensor:
        a = self._a
        normed = self._norm(stream, a.hidden)
        if a.experts:
            return self._add(stream, self._experts(normed))
        if a.fused:
            both = self._linear(normed, "mlp.gate_up_proj")
            self._keep(both)
            gate = up = both
            activated = self._tensor(a.feed_forward, both.size, both.grad)
        else:
            gate = self._linear(normed, "mlp.gate_proj")
            self._keep(gate)
            activated = self._tensor(a.feed_forward, gate.size, gate.grad)
            up = self._linear(normed, "mlp.up_proj")
        self._keep(activated)
        self._keep(up)
        out = self._linear(self._tensor(a.feed_forward, activated.size, activated.grad), "mlp.down_proj")
        return self._add(stream, self._norm(out, a.hidden) if a.sandwich else out)

    def _experts(self, normed: _Tensor) -> _Tensor:
        """Each token goes through some of the experts: their inputs, gates, ups and products, in the order in which
        they were routed."""
        a, lower = self._a, self._arithmetic.autocast or normed.size
        self._keep(self._tensor(a.experts, _FLOAT, True))
        for per_token in (a.hidden, 2 * a.feed_forward, a.feed_forward, a.feed_forward, a.hidden):
            self._keep(self._tensor(per_token * a.experts_per_token, lower, True))
        return self._tensor(a.hidden, lower, normed.grad)

    def _inl(self, stream: _Tensor) -> None:
        """About 13 values of hidden size for each token and iteration, besides norms and feed-forward."""
        a = self._a
        self._keep(stream)
        for _ in range(a.iterations):
            self._keep(self._tensor(13 * a.hidden, _FLOAT, True))
        self._keep(self._tensor(2 * a.hidden, self._arithmetic.stream, True))
        self._keep(self._tensor(2 * a.feed_forward, self._arithmetic.autocast or self._arithmetic.stream, True))

    def _layers_alone(self, stream: _Tensor) -> None:
        """A block of which only the layers are known: two norms, each layer's input and output, and attention."""
        a = self._a
        for _ in range(2):
            self._norm(stream, a.hidden)
        out = stream
        for layer in a.linears:
            given = self._tensor(layer.columns, out.size, stream.grad)
            self._keep(given)
            out = self._linear(given, layer.name)
            self._keep(out)
        query = self._tensor(a.heads * a.head_dim, stream.size, True)
        key = self._tensor(a.kv_heads * a.head_dim, stream.size, True)
        self._scores(query, key, self._tensor(a.kv_heads * a.head_dim, stream.size, True))

    def _add(self, stream: _Tensor, branch: _Tensor) -> _Tensor:
        return self._tensor(self._a.hidden, max(stream.size, branch.size), stream.grad or branch.grad)

    def _norm(self, given: _Tensor, size: int) -> _Tensor:
        """RMSNorm computes in float32, so of a 16-bit input a float32 copy is kept; so is one number for each norm."""
        reached = given.grad
        wide = self._cast(given, _FLOAT)
        if reached:
            self._keep(wide)
            self._keep(_Tensor(given.values // size, _FLOAT, True))
        gemma = self._a.norm == "gemma"
        if self._trains_base:
            self._keep(_Tensor(given.values, _FLOAT if gemma else given.size, True))
        if gemma and reached:
            # 1 + weight is a new tensor.
            self._keep(_Tensor(size, _FLOAT, False))
        # Weights that are float32 for their own sake widen what they scale.
        out = given.size if gemma else max(given.size, self._arithmetic.weights)
        return _Tensor(given.values, out, reached or self._trains_base)

    def _linear(self, given: _Tensor, name: str) -> _Tensor:
        layer = next(layer for layer in self._a.linears if layer.name == name)
        lower, bits = self._arithmetic.autocast, self._arithmetic.bits
        # A quantised layer gives back the numbers it was given, whatever it computes in.
        cast = given if bits else self._cast(given, lower)
        if self._trains_base or bits == 8:
            self._keep(cast)
        if given.grad and lower is not None and self._arithmetic.weights != lower and not bits:
            # Autocast makes a 16-bit copy of the weight in every pass, and the gradient of the input needs it.
            self._keep(_Tensor(layer.num_weights, lower, False))
        grad = given.grad or self._trains_base
        if self._adapters is not None and layer in self._adapters.targets:
            self._adapter(given, layer, self._adapters)
            grad = True
        return self._tensor(layer.rows, cast.size, grad)

    def _adapter(self, given: _Tensor, layer: LinearLayer, adapters: Adapters) -> None:
        lower = self._arithmetic.autocast
        # PEFT widens what goes into a float32 adapter.
        dropped = self._cast(given, _FLOAT)
        if adapters.dropout:
            dropped = _Tensor(given.values, _FLOAT, given.grad)
            if given.grad:
                # A GPU keeps which values were dropped; a CPU what they were multiplied with.
                self._keep(_Tensor(given.values, 1 if self._on_gpu else _FLOAT, False))
        self._keep(self._cast(dropped, lower))
        inner = self._tensor(adapters.r, lower or _FLOAT, True)
        self._keep(inner)
        if lower is not None:
            for values in (adapters.r * layer.rows, adapters.r * layer.columns if given.grad else 0):
                self._keep(_Tensor(values, lower, False))
