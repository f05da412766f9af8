"""The decoder over frames: shared prompts, token by token, holes and families, against torch and against itself."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from c3jax.models import attention, decoder
from c3jax.models.huggingface import weights as hf_weights
from c3jax.models.huggingface.families import FAMILIES
from c3jax.models.spec import LLAMA, QKV, DecoderSpec
from c3jax.types import Frame, KeysValues

GOLDENS = Path(__file__).parent / "goldens"
# Biases as in Qwen2, norms of queries and keys as in Qwen3, grouped heads, a head of its own.
SPEC = DecoderSpec(
    vocab_size=32, layers=2, width=24, heads=4, kv_heads=2, head_dim=6, mlp_width=40, context=64,
    rope_theta=1e4, norm_eps=1e-5, tied=False, family=LLAMA._replace(qk_norm="head"), biases=QKV,
)  # fmt: skip
SPECS = {
    "plain": SPEC,
    # A window that is shorter than every path of the tests, in one of two layers; both caps.
    "windows": SPEC._replace(
        family=FAMILIES["gemma2"], biases=(), activation="gelu_pytorch_tanh", query_scalar=9, tied=True,
        attention_softcap=2.0, logit_softcap=3.0, window=4, windowed_layers=(0,),
    ),
    # Every layer rotates otherwise, and two have a window; norms after, those of queries and keys over all heads.
    "ropes": SPEC._replace(
        family=FAMILIES["olmo2"], biases=(), layers=3, window=6, windowed_layers=(0, 2), local_rope_theta=10.0,
        unrotated_layers=(2,),
    ),
}  # fmt: skip


def _make(spec, seed=0):
    """Random parameters of scale 0.5, so that attention is far from uniform and norms and biases matter."""
    graphdef, shapes = decoder.define_decoder(spec)
    random = np.random.default_rng(seed)
    return graphdef, jax.tree.map(lambda leaf: np.float32(0.5 * random.normal(size=leaf.shape)), shapes)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@partial(jax.jit, static_argnums=0)
def _run(graphdef, params, frames):
    """Logits of each frame of a path, and the path's keys and values."""
    model = nnx.merge(graphdef, params)
    [hidden], [past] = model.extend_paths((), [frames])
    return [model.compute_logits(each) for each in hidden], past


def _random_frame(seed, rows, slots, holes=True):
    random = np.random.default_rng(seed)
    keep = random.random((rows, slots)) < 0.7 if holes else np.ones((rows, slots), bool)
    return Frame(random.integers(0, SPEC.vocab_size, (rows, slots)), keep)


def _shared_path():
    return [_random_frame(1, 1, 3, holes=False), _random_frame(2, 2, 4), _random_frame(3, 6, 5)]


def _repeat_path(frames):
    rows = frames[-1].tokens_NS.shape[0]
    repeated = [[np.repeat(part, rows // part.shape[0], axis=0) for part in frame] for frame in frames]
    return Frame(*(np.concatenate(parts, axis=1) for parts in zip(*repeated, strict=True)))


def test_shared_frames_equal_repeated_prompts(spec):
    graphdef, params = _make(spec)
    frames = _shared_path()
    shared, _ = _run(graphdef, params, frames)
    (repeated,), _ = _run(graphdef, params, [_repeat_path(frames)])
    kept = frames[-1].keep_NS
    np.testing.assert_allclose(shared[-1][kept], repeated[:, -5:][kept], atol=2e-5)
    assert float(jnp.std(repeated)) > 0.5


def test_paths_at_once_are_what_their_frames_are_one_after_the_other(spec):
    """Three frames, and beside them a path of the first two, which sees no other."""
    graphdef, params = _make(spec)
    frames = _shared_path()

    @jax.jit
    def run_at_once(params, frames):
        model = nnx.merge(graphdef, params)
        hidden, own = model.extend_paths((), (frames, frames[:2]))
        return [list(map(model.compute_logits, each)) for each in hidden], own

    @jax.jit
    def run_apart(params, frames):
        model, before, logits = nnx.merge(graphdef, params), (), []
        for frame in frames:
            hidden, own = model.extend(before, frame)
            before, logits = (*before, own), [*logits, model.compute_logits(hidden)]
        return logits, before

    logits, past = run_apart(params, frames)
    wanted = ([logits, logits[:2]], [past, past[:2]])
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), run_at_once(params, frames), wanted)


@partial(jax.jit, static_argnums=0)
def _differentiate(graphdef, params, frames, target):
    def loss(params):
        logits = _run(graphdef, params, frames)[0][-1][:, -5:]
        return -jnp.sum(jax.nn.log_softmax(logits) * target) / jnp.sum(target)

    return jax.grad(loss)(params)


@pytest.mark.parametrize(
    "name, remat", [("plain", "layer"), ("plain", "dots"), ("windows", "none"), ("ropes", "layer")]
)
def test_gradients_through_shared_frames_equal_repeated_prompts(name, remat):
    # The shared side computes each layer again in the backward pass, so this is the test of remat too.
    graphdef, params = _make(SPECS[name])
    remat_graphdef, _ = decoder.define_decoder(SPECS[name]._replace(remat=remat))
    frames = _shared_path()[1:]
    target = jax.nn.one_hot(frames[-1].tokens_NS, SPEC.vocab_size) * frames[-1].keep_NS[..., None]
    got = jax.tree.leaves_with_path(_differentiate(remat_graphdef, params, frames, target))
    wanted = jax.tree.leaves(_differentiate(graphdef, params, [_repeat_path(frames)], target))
    for (path, one), other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=str(path))
        assert float(jnp.abs(other).max()) > 1e-3, path


def test_matrices_are_rounded_once_before_decoding_as_each_product_would_round_them():
    graphdef, params = _make(SPEC._replace(dtype="bfloat16"))
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
    frame, (_, stacked) = _random_frame(6, 2, 5), nnx.split(model.blocks)
    plain = tuple(jax.tree.map(lambda leaf, index=index: leaf[index], stacked) for index in range(SPEC.layers))
    apart = model.prepare_layers()
    types = {str(leaf.dtype) for leaf in jax.tree.leaves(apart) if leaf.ndim == 2}
    assert types == {"bfloat16"} and all(layer["attention_norm"][...].dtype == jnp.float32 for layer in apart)
    np.testing.assert_array_equal(model.extend((), frame, apart)[0], model.extend((), frame, plain)[0])


def test_prefill_and_single_tokens_equal_one_forward(spec):
    graphdef, params = _make(spec)
    frames = _shared_path()
    message = _random_frame(3, 6, 5, holes=False)
    whole, _ = _run(graphdef, params, [*frames[:2], message])
    _, past = _run(graphdef, params, frames[:2])
    params = jax.tree.map(jnp.asarray, params)
    buffer = KeysValues(*(np.zeros((spec.layers, 6, 2, 5, 6), np.float32) for _ in range(2)), np.zeros((6, 5), bool))

    @jax.jit
    def step(buffer, token_N, slot):
        model = nnx.merge(graphdef, params)
        hidden, own = model.extend((*past, buffer), Frame(token_N[:, None], jnp.ones((6, 1), bool)))
        grown = KeysValues(
            buffer.key_LNHSD.at[:, :, :, slot].set(own.key_LNHSD[:, :, :, 0]),
            buffer.value_LNHSD.at[:, :, :, slot].set(own.value_LNHSD[:, :, :, 0]),
            buffer.keep_NS.at[:, slot].set(True),
        )
        return grown, model.compute_logits(hidden)[:, 0]

    for slot in range(5):
        buffer, logits = step(buffer, message.tokens_NS[:, slot], slot)
        np.testing.assert_allclose(logits, whole[-1][:, slot], atol=2e-5)


def test_some_rows_of_a_batch_go_on_as_in_the_whole(spec):
    # As decoding has it where rows have left the batch: layers apart, and what the rows wrote here for them alone.
    graphdef, params = _make(spec)
    frames = [*_shared_path()[:2], _random_frame(3, 6, 5)]
    _, past = _run(graphdef, params, frames)
    token, index = _random_frame(8, 6, 1, holes=False), np.array([4, 1, 3])

    @jax.jit
    def extend(params, past):
        model, rows = nnx.merge(graphdef, params), attention.Rows(jnp.array(index), 6)
        apart = tuple(KeysValues(tuple(p.key_LNHSD), tuple(p.value_LNHSD), p.keep_NS) for p in past)
        last, some_token = jax.tree.map(lambda part: part[index], (apart[-1], token))
        some, _ = model.extend((*apart[:-1], last), some_token, model.prepare_layers(), rows)
        return some, model.extend(past, token)[0]

    some, whole = extend(params, past)
    np.testing.assert_allclose(some, whole[index], atol=2e-5)


def test_later_tokens_and_other_rows_change_nothing():
    graphdef, params = _make(SPEC)
    frame = _random_frame(5, 3, 6, holes=False)
    (before,), _ = _run(graphdef, params, [frame])
    changed = frame.tokens_NS.copy()
    changed[1, 4] = (changed[1, 4] + 1) % SPEC.vocab_size
    (after,), _ = _run(graphdef, params, [frame._replace(tokens_NS=changed)])
    same = np.ones((3, 6), bool)
    same[1, 4:] = False
    np.testing.assert_array_equal(before[same], after[same])
    assert np.abs(before[~same] - after[~same]).max() > 1e-2


def test_positions_count_kept_tokens():
    # Two layers without positions would give a token the same logits in any order of what comes before it.
    graphdef, params = _make(SPEC)
    (one,), _ = _run(graphdef, params, [Frame(np.array([[3, 9, 9, 5]]), np.ones((1, 4), bool))])
    (other,), _ = _run(graphdef, params, [Frame(np.array([[9, 9, 3, 5]]), np.ones((1, 4), bool))])
    (padded,), _ = _run(graphdef, params, [Frame(np.array([[0, 3, 9, 9, 5]]), np.array([[False, *[True] * 4]]))])
    assert np.abs(one[0, 3] - other[0, 3]).max() > 1e-2
    np.testing.assert_allclose(padded[0, 1:], one[0], atol=2e-5)


def test_a_window_hides_what_is_before_it():
    # With a window of 4 in its one layer, a token's logits do not depend on what stands 4 tokens before it.
    graphdef, params = _make(SPEC._replace(layers=1, window=4, windowed_layers=(0,)))
    tokens = np.array([[3, 9, 7, 5, 8, 2]])
    keep = np.ones(tokens.shape, bool)
    (before,), _ = _run(graphdef, params, [Frame(tokens, keep)])
    changed = tokens.copy()
    changed[0, 1] = 4
    (after,), _ = _run(graphdef, params, [Frame(changed, keep)])
    np.testing.assert_array_equal(before[:, 5], after[:, 5])
    assert np.abs(before[:, 4] - after[:, 4]).max() > 1e-2


@pytest.mark.parametrize("name", ["llama_tied", "qwen3", "mistral", "olmo2", "gemma2", "gemma3", "smollm3"])
def test_frames_with_holes_equal_torch(name, tmp_path):
    golden = np.load(GOLDENS / f"{name}.npz")
    weights = {key.removeprefix("weight/"): golden[key] for key in golden if key.startswith("weight/")}
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(str(golden["config"]))
    spec, params = hf_weights.load_folder(tmp_path)
    # torch saw 11 tokens at once; here 4 stand in one frame, none in the next and 7 in the last, among holes.
    layouts = [[0, 1, 0, 1, 1, 1, 0], [0, 0], [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0]]
    frames, start = [], 0
    for layout in layouts:
        keep = np.array([layout] * 2, bool)
        tokens = np.full(keep.shape, 7)
        tokens[:, keep[0]] = golden["tokens"][:, start : start + sum(layout)]
        frames, start = [*frames, Frame(tokens, keep)], start + sum(layout)
    logits, _ = _run(decoder.define_decoder(spec)[0], params, frames)
    got = np.concatenate([out[:, frame.keep_NS[0]] for out, frame in zip(logits, frames, strict=True)], axis=1)
    np.testing.assert_allclose(got, golden["logits"], atol=1e-5)


def test_bfloat16_products_keep_float32_parameters_and_logits():
    graphdef, params = _make(SPEC)
    low_graphdef, shapes = decoder.define_decoder(SPEC._replace(dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    frames = [_repeat_path(_shared_path())]
    logits, past = _run(low_graphdef, params, frames)
    assert logits[-1].dtype == jnp.float32 and past[0].key_LNHSD.dtype == jnp.bfloat16
    full, _ = _run(graphdef, params, frames)
    # bfloat16 keeps 8 bits, so products are off by up to 2^-9 each: a few percent after two layers, and not nothing.
    error = float(jnp.std(logits[-1] - full[-1]) / jnp.std(full[-1]))
    assert 1e-5 < error < 0.03
