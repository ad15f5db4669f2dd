"""Computes the activations that autograd saves in a forward pass, by following one block operation by operation.

The rules are those of PyTorch's backward formulas: a product saves the factors that the gradients need, a frozen layer
does not save its input, and a tensor that several operations save counts once. Tensors that no gradient reaches are not
saved, so the first block of an adapter training saves less than the others.
"""

from dataclasses import dataclass
from typing import Final, Literal

from engine.estimate.architecture import Architecture, LinearLayer
from engine.inl_sizes import CONTROLLER_SIZE

Method = Literal["lora", "qlora", "full"]
METHODS: Final[tuple[Method, ...]] = ("lora", "qlora", "full")
BYTES: Final = {"fp32": 4, "bf16": 2, "fp16": 2}
_FLOAT: Final = 4


@dataclass(frozen=True)
class Arithmetic:
    """The number formats of a training."""

    weights: int
    """Bytes of an unquantised base weight."""
    autocast: int | None
    """Bytes of a value that autocast converts inputs of matrix products to; None: no autocast."""
    bits: int | None = None
    """Bits of a quantised weight; None: the linear layers are not quantised."""

    @property
    def stream(self) -> int:
        """Bytes of a value of the residual stream: those of the embedding, where it starts."""
        return self.weights


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded to its longest row."""

    rows: int
    length: int
    padded: bool
    """True if rows differ in length; then every block saves a mask."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters with float32 weights."""

    r: int
    """Rank."""
    dropout: float
    dora: bool = False


@dataclass(eq=False)
class _Tensor:
    """A tensor of the forward pass; two objects are the same tensor only if they share memory."""

    values: int
    size: int
    """Bytes of a value."""
    grad: bool
    """True if a gradient reaches it."""

    @property
    def bytes(self) -> int:
        return self.values * self.size


class SavedActivations:
    """Follows the forward pass and adds up the tensors that autograd saves."""

    def __init__(
        self, architecture: Architecture, batch: Batch, arithmetic: Arithmetic, adapters: Adapters | None, on_gpu: bool
    ) -> None:
        self._a, self._batch, self._arithmetic = architecture, batch, arithmetic
        self._adapters = adapters
        self._on_gpu = on_gpu
        self._trains_base = adapters is None
        self._targets: tuple[LinearLayer, ...] = ()
        self._saved: dict[int, _Tensor] = {}
        self._copies: dict[tuple[str, str], _Tensor] = {}
        """Copies that autocast makes of trained weights, once in a forward pass."""

    def block(self, targets: tuple[LinearLayer, ...] = (), *, reached: bool) -> int:
        """Returns the bytes that one block saves whose layers `targets` have adapters; `reached`: a gradient flows into
        its input."""
        self._targets = targets
        self._saved = {}
        self._copies = {}
        stream = self._tensor(self._a.hidden, self._arithmetic.stream, reached)
        match self._a.family:
            case "decoder":
                self._feed_forward(self._attention(stream))
            case "inl":
                self._inl(stream)
            case "other":
                self._unknown_order(stream)
        return sum(tensor.bytes for tensor in self._saved.values())

    def last_norm(self) -> int:
        """Returns the bytes that the norm before the head saves."""
        self._saved = {}
        given = self._tensor(self._a.hidden, self._arithmetic.stream, True)
        if self._a.family == "inl":
            self._layer_norm(given)
        else:
            self._norm(given, self._a.hidden)
        return sum(tensor.bytes for tensor in self._saved.values())

    def _tensor(self, per_token: int, size: int, grad: bool) -> _Tensor:
        return _Tensor(per_token * self._batch.tokens, size, grad)

    def _save(self, tensor: _Tensor) -> None:
        self._saved[id(tensor)] = tensor

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
        # The rotary embedding needs only its angles for the backward pass, and all blocks share them.
        angles = max(stream.size, query.size)
        rotated = self._tensor(query_size, angles, query.grad), self._tensor(key_size, angles, key.grad)
        mixed = self._scores(*rotated, value)
        if a.fused:
            # Fused queries are stored head by head, and so is the output: it is copied to token order.
            mixed = self._tensor(query_size, mixed.size, mixed.grad)
        out = self._linear(mixed, "self_attn.o_proj")
        return self._add(stream, self._norm(out, a.hidden) if a.sandwich else out)

    def _scores(self, query: _Tensor, key: _Tensor, value: _Tensor) -> _Tensor:
        """Scaled dot-product attention, in one kernel unless the model soft-caps the logits."""
        a, batch, lower = self._a, self._batch, self._arithmetic.autocast
        query, key, value = (self._cast(tensor, lower) for tensor in (query, key, value))
        grad = query.grad or key.grad or value.grad
        out = self._tensor(a.heads * a.head_dim, query.size, grad)
        if not grad:
            return out
        grid = batch.rows * batch.length * batch.length
        # With a mask, or outside the fused kernel, keys and values are first repeated for every head. For the kernel a
        # single key head is only a view.
        repeated = a.heads != a.kv_heads and (a.softcap or (batch.padded and a.kv_heads > 1))
        for tensor in (key, value):
            self._save(self._tensor(a.heads * a.head_dim, tensor.size, True) if repeated else tensor)
        self._save(query)
        if a.softcap:
            self._save(_Tensor(grid * a.heads, query.size, True))
            self._save(_Tensor(grid * a.heads, _FLOAT, True))
            if query.size != _FLOAT:
                self._save(_Tensor(grid * a.heads, query.size, True))
            return out
        self._save(out)
        self._save(self._tensor(a.heads, _FLOAT, True))
        if batch.padded:
            self._save(_Tensor(grid, query.size, False))
        return out

    def _feed_forward(self, stream: _Tensor) -> _Tensor:
        a = self._a
        normed = self._norm(stream, a.hidden)
        if a.experts:
            return self._add(stream, self._experts(normed))
        if a.fused:
            gate = up = self._linear(normed, "mlp.gate_up_proj")
        else:
            gate = self._linear(normed, "mlp.gate_proj")
            up = self._linear(normed, "mlp.up_proj")
        activated = self._tensor(a.feed_forward, gate.size, gate.grad)
        if gate.grad:
            self._save(gate)
            self._save(up)
        if up.grad:
            self._save(activated)
        out = self._linear(self._tensor(a.feed_forward, activated.size, gate.grad or up.grad), "mlp.down_proj")
        return self._add(stream, self._norm(out, a.hidden) if a.sandwich else out)

    def _experts(self, normed: _Tensor) -> _Tensor:
        """Each token passes through some experts: saved are their inputs, gates, ups and products, in routing order."""
        a, lower = self._a, self._arithmetic.autocast or normed.size
        self._save(self._tensor(a.experts, _FLOAT, True))
        for per_token in (a.hidden, 2 * a.feed_forward, a.feed_forward, a.feed_forward, a.hidden):
            self._save(self._tensor(per_token * a.experts_per_token, lower, True))
        return self._tensor(a.hidden, lower, normed.grad)

    def _inl(self, stream: _Tensor) -> None:
        """An INL block: contexts and their averages, the steps of the integration, feed-forward."""
        a, batch = self._a, self._batch
        given = self._layer_norm(stream)
        contexts = self._linear(given, "context")
        if batch.padded and contexts.grad:
            self._save(_Tensor(batch.tokens, 1, False))
        average = self._tensor(a.hidden, stream.size, contexts.grad)
        constant = self._linear(average, "controllers.from_average")
        state, velocity = self._cast(given, _FLOAT), self._tensor(a.hidden, _FLOAT, False)
        for _ in range(a.iterations):
            state, velocity = self._integrated(state, velocity, constant)
        # The mask of dropout, which these models have by default.
        self._save(self._tensor(a.hidden, 1 if self._on_gpu else stream.size, False))
        hidden = self._add(stream, self._cast(state, stream.size))
        inner = self._linear(self._layer_norm(hidden), "feed_forward.up_proj")
        if inner.grad:
            self._save(inner)
        self._linear(self._tensor(a.feed_forward, inner.size, inner.grad), "feed_forward.down_proj")

    def _integrated(self, state: _Tensor, velocity: _Tensor, constant: _Tensor) -> tuple[_Tensor, _Tensor]:
        """One step of an INL block: returns state and velocity after it, which are float32 whatever the precision."""
        stream = self._arithmetic.stream
        for tensor, layer in ((state, "from_state"), (velocity, "from_velocity")):
            self._linear(self._cast(tensor, stream), f"controllers.{layer}")
        outputs = {}
        for name in ("alpha", "beta", "gate", "target"):
            # Each controller has its quarter of the rectified hidden layer.
            part = self._tensor(CONTROLLER_SIZE, constant.size, True)
            self._save(part)
            outputs[name] = self._cast(self._linear(part, f"controllers.{name}"), _FLOAT)
        # The sigmoids of alpha and gate, the target, and beta before and after it is made positive and limited.
        for tensor in (*outputs.values(), self._result(), self._result(), velocity):
            self._save(tensor)
        # The offset from the attractor, and alpha after it is damped.
        for _ in range(2):
            self._save(self._result())
        # The norm of the offset, its exponential, and the factor made of that.
        for _ in range(3):
            self._save(self._tensor(1, _FLOAT, True))
        after = self._result()
        self._save(after)
        return self._result(), after

    def _result(self) -> _Tensor:
        return self._tensor(self._a.hidden, _FLOAT, True)

    def _layer_norm(self, given: _Tensor) -> _Tensor:
        """LayerNorm saves its input, and mean and deviation of each vector. On a GPU, autocast computes in float32."""
        wide = self._cast(given, _FLOAT) if self._on_gpu and self._arithmetic.autocast else given
        if given.grad or self._trains_base:
            self._save(wide)
            self._save(self._tensor(2, _FLOAT, True))
        return _Tensor(given.values, wide.size, given.grad or self._trains_base)

    def _unknown_order(self, stream: _Tensor) -> None:
        """A block of unknown order: two norms, the input and output of each layer, and attention."""
        a = self._a
        for _ in range(2):
            self._norm(stream, a.hidden)
        out = stream
        for layer in a.linears:
            given = self._tensor(layer.columns, out.size, stream.grad)
            self._save(given)
            out = self._linear(given, layer.name)
            self._save(out)
        query = self._tensor(a.heads * a.head_dim, stream.size, True)
        key = self._tensor(a.kv_heads * a.head_dim, stream.size, True)
        self._scores(query, key, self._tensor(a.kv_heads * a.head_dim, stream.size, True))

    def _add(self, stream: _Tensor, branch: _Tensor) -> _Tensor:
        return self._tensor(self._a.hidden, max(stream.size, branch.size), stream.grad or branch.grad)

    def _norm(self, given: _Tensor, size: int) -> _Tensor:
        """RMSNorm computes in float32: it saves a float32 copy of a 16-bit input, and one value per vector."""
        reached = given.grad
        wide = self._cast(given, _FLOAT)
        if reached:
            self._save(wide)
            self._save(_Tensor(given.values // size, _FLOAT, True))
        gemma = self._a.norm == "gemma"
        if self._trains_base:
            self._save(_Tensor(given.values, _FLOAT if gemma else given.size, True))
        if gemma and reached:
            # 1 + weight is a new tensor.
            self._save(_Tensor(size, _FLOAT, False))
        # Float32 norm weights convert their output to float32.
        out = given.size if gemma else max(given.size, self._arithmetic.weights)
        return _Tensor(given.values, out, reached or self._trains_base)

    def _linear(self, given: _Tensor, name: str) -> _Tensor:
        layer = next(layer for layer in self._a.linears if layer.name == name)
        lower, bits = self._arithmetic.autocast, self._arithmetic.bits
        # A quantised layer returns the format of its input, whatever it computes in.
        cast = given if bits else self._cast(given, lower)
        if self._trains_base or bits == 8:
            self._save(cast)
        if given.grad and lower is not None and self._arithmetic.weights != lower and not bits:
            # Autocast makes a 16-bit copy of the weight in every pass, and the gradient of the input needs it.
            # A copy of a frozen weight is made each time that it is used, as in each step of an INL block.
            copy = _Tensor(layer.num_weights, lower, False)
            self._save(self._copies.setdefault((name, ""), copy) if self._trains_base else copy)
        grad = given.grad or self._trains_base
        if self._adapters is not None and layer in self._targets:
            self._adapter(given, layer, self._adapters)
            grad = True
        return self._tensor(layer.rows, cast.size, grad)

    def _adapter(self, given: _Tensor, layer: LinearLayer, adapters: Adapters) -> None:
        lower = self._arithmetic.autocast
        # PEFT converts the input of a float32 adapter to float32.
        dropped = self._cast(given, _FLOAT)
        if adapters.dropout:
            dropped = _Tensor(given.values, _FLOAT, given.grad)
            if given.grad:
                # A GPU saves a mask of the dropped values; a CPU saves the factors.
                self._save(_Tensor(given.values, 1 if self._on_gpu else _FLOAT, False))
        self._save(self._cast(dropped, lower))
        inner = self._tensor(adapters.r, lower or _FLOAT, True)
        self._save(inner)
        if adapters.dora:
            # The magnitudes scale the outputs of the layer and of the adapter.
            for _ in range(2):
                self._save(self._tensor(layer.rows, lower or _FLOAT, True))
            copied = self._arithmetic.bits or lower not in (None, self._arithmetic.weights)
            if adapters.dropout and given.grad and copied:
                # The layer's output is computed again, from the dropped input and a copy of the weight.
                self._save(_Tensor(layer.num_weights, lower or _FLOAT, False))
        if lower is not None:
            parts = {"B": adapters.r * layer.rows, "A": adapters.r * layer.columns if given.grad else 0}
            for part, values in parts.items():
                self._save(self._copies.setdefault((layer.name, part), _Tensor(values, lower, False)))
