"""Every kind of head is found by numbers, exact in float64, and a wrong readout fails."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch

import toys
from benchmarks.census import coloured_squares, draw_weights
from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.models.backbone import probe_readout
from protonmf_cli.models.readouts.readout import FORMULA_LIMIT, in_float64, relative_difference
from protonmf_cli.models.readouts.stored import PLAN, restored_readout, stored_readout
from protonmf_cli.pipelines.conversion.network_figures import quadrants_followed
from toys import slow

HEADS = [
    ("test_resnet", {}, "average", (5, 5)),
    ("test_efficientnet", {}, "average", (5, 5)),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, "average", (2, 2)),
    ("gmlp_ti16_224", {}, "average", (14, 14)),
    ("sequencer2d_s", {"img_size": 64}, "average", (4, 4)),  # channels last
    ("levit_128s", {}, "average", (4, 4)),
    ("efficientformerv2_s0", {}, "average", (7, 7)),  # two averaged classifiers
    ("dla46x_c", {}, "average", (7, 7)),
    ("repvit_m1", {}, "average", (7, 7)),
    ("test_convnext", {}, "scaled", (5, 5)),
    ("test_vit2", {}, "scaled", (10, 10)),
    ("vit_little_patch16_reg4_gap_256", {"img_size": 64}, "scaled", (4, 4)),
    ("convnext_atto_rms", {}, "scaled", (7, 7)),
    ("test_vit4", {}, "scaled", (10, 10)),
    ("convnext_zepto_rms", {}, "scaled", (7, 7)),
    ("test_vit", {}, "token-writes", (10, 10)),
    ("deit3_small_patch16_224", {"img_size": 64}, "token-writes", (4, 4)),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 70}, "token-writes", (5, 5)),
    ("vit_small_patch16_rope_224", {"img_size": 64}, "token-writes", (4, 4)),  # rotary embeddings
    ("vit_relpos_medium_patch16_cls_224", {"img_size": 64}, "token-writes", (4, 4)),  # biased scores
    ("cait_xxs24_224", {"img_size": 64}, "token-writes", (4, 4)),  # class attention, two tensors per block
    ("xcit_nano_12_p8_224", {"img_size": 64}, "token-writes", (8, 8)),  # the stream itself passes a norm
    ("convit_tiny", {"img_size": 64}, "token-writes", (4, 4)),  # attention without torch's function
    ("tnt_s_patch16_224", {"img_size": 64}, "token-writes", (4, 4)),  # two streams
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, "token-writes", (4, 4)),  # two tokens, two classifiers
    ("pit_ti_224", {}, "token-writes", (7, 7)),  # the last stage of three
    ("pit_ti_distilled_224", {}, "token-writes", (7, 7)),
    ("volo_d1_224", {"img_size": 64}, "token-writes and votes", (4, 4)),
    ("vit_base_patch16_xp_224", {"img_size": 64}, "single-row", None),  # attention and MLP in one module
    ("mvitv2_small_cls", {"img_size": 64}, "single-row", None),  # attention that adds its query
    ("mobilenetv3_small_050", {}, "gated", (7, 7)),  # an activation that writes to its input
    ("hgnetv2_b0", {}, "gated", (7, 7)),
    ("test_mambaout", {}, "gated", (5, 5)),  # a norm before the hidden layer
    ("caformer_s18", {}, "gated", (7, 7)),  # a norm after an activation that is made of another one
    ("coatnet_0_224", {}, "gated", (7, 7)),
    ("efficientvit_b0", {}, "gated", (7, 7)),  # an activation before the pool
    ("test_resnet", {"global_pool": "max"}, "max pool", (5, 5)),
    ("test_resnet", {"global_pool": "avgmax"}, "avgmax pool", (5, 5)),
    ("test_resnet", {"global_pool": "catavgmax"}, "catavgmax pool", (5, 5)),
    ("crossvit_tiny_240", {}, "branches", None),
    ("coat_tiny", {}, "branches", None),
    ("efficientvim_m1", {}, "branches", None),  # channels before positions
    ("test_vit3", {}, "attention-pool", (10, 10)),
    ("vit_pe_core_tiny_patch16_384", {"img_size": 64}, "attention-pool", (4, 4)),
    ("resnet50_clip", {}, "attention-pool", (7, 7)),
    ("vgg11", {}, "gated", (7, 7)),  # 129 million weights
]
HEAVY = {
    "swin_tiny_patch4_window7_224",
    "dla46x_c",
    "repvit_m1",
    "vit_small_patch14_reg4_dinov2",
    "vit_relpos_medium_patch16_cls_224",
    "tnt_s_patch16_224",
    "pit_ti_distilled_224",
    "vit_base_patch16_xp_224",
    "caformer_s18",
    "coatnet_0_224",
    "coat_tiny",
    "resnet50_clip",
    "vgg11",
    "convnext_atto_rms",
    "crossvit_tiny_240",
    "deit3_small_patch16_224",
    "efficientformerv2_s0",
    "gmlp_ti16_224",
    "hgnetv2_b0",
    "pit_ti_224",
    "sequencer2d_s",
    "vit_small_patch16_rope_224",
}
"""Of a kind that a smaller network has, too: these run with -m slow."""


def network(name: str, arguments: dict) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    torch.manual_seed(0)
    built = toys.randomised(timm.create_model(name, num_classes=10, **arguments))
    side = arguments.get("img_size", built.pretrained_cfg["input_size"][-1])
    return built, (3, side, side)


@pytest.fixture(scope="module")
def built_head(request) -> tuple[str, torch.nn.Module, tuple[int, int, int]]:
    """One of the networks, built once for all tests of it."""
    name, arguments = request.param
    return name, *network(name, arguments)


def each_head(entries: list[tuple]):
    """Parametrises a test with networks, and what is expected of them."""
    split = [
        pytest.param(
            (name, arguments), kind, grid, id="-".join([name, *map(str, arguments.values())]),
            marks=[pytest.mark.slow] if name in HEAVY else [],
        )
        for name, arguments, kind, grid in entries
    ]  # fmt: skip
    return pytest.mark.parametrize(("built_head", "kind", "grid"), split, indirect=["built_head"])


@each_head(HEADS)
def test_kind_grid_and_exactness(built_head, kind, grid):
    name, built, size = built_head
    readout, difference = probe_readout(built, size, "auto", name)
    assert (readout.kind, readout.grid) == (kind, grid)
    assert difference <= 1e-12
    assert readout.spatial == (grid is not None)
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with in_float64(built), torch.no_grad():
        exact = readout.to(dtype=torch.float64)
        reading = exact.read(built, pixels)
        assert torch.equal(reading.logits, built(pixels))
        assert reading.rows.shape[1] == readout.places + len(readout.unplaced)
        if reading.rows.shape[1] > 1:
            short = relative_difference(exact.logits(reading.rows[:, 1:]), reading.logits)
            assert short > 100 * FORMULA_LIMIT, "a readout that lacks a row passes"
    stored = stored_readout(readout, built, difference)
    again, known = restored_readout(stored, built)
    assert known == difference
    with in_float64(built), torch.no_grad():
        found = again.to(dtype=torch.float64).read(built, pixels)
        assert torch.equal(found.rows, reading.rows)
        assert torch.equal(again.vectors, readout.vectors) and torch.equal(again.bias, readout.bias)


def test_a_stored_readout_names_the_network_s_own_weights():
    built, size = network("test_resnet", {})
    readout, difference = probe_readout(built, size, "auto", "test_resnet")
    stored = stored_readout(readout, built, difference)
    assert sum(tensor.numel() for name, tensor in stored.items() if name != PLAN) == 2 * readout.places
    with torch.no_grad():
        built.fc.weight[0, 0] += 1
    again, _ = restored_readout(stored, built)
    assert float((again.vectors - readout.vectors)[0, 0]) == pytest.approx(1)


def quadrants(built, readout, size: tuple[int, int]) -> int:
    """Of twelve changed quadrants of coloured squares, those whose rows move most where they are."""
    found = 0
    for seed in range(3):
        found += quadrants_followed(built, readout, coloured_squares(3, *size, seed=seed))
    return found


# the untrained attention of LeViT gives every position the same features, that of EfficientFormerV2 nearly so
MIXING = ("levit_128s", "efficientformerv2_s0")
SPATIAL = [entry for entry in HEADS if entry[3] and entry[0] not in (*MIXING, "vgg11")]


@each_head(SPATIAL)
def test_rows_lie_where_the_image_changes(built_head, kind, grid):
    name, built, size = built_head
    draw_weights(built)  # anew: nothing else of this network is tested afterwards
    readout, _ = probe_readout(built, size, "auto", name)
    assert readout.grid == grid
    assert quadrants(built, readout, size[1:]) >= 9  # 6 where rows and columns are exchanged


@pytest.mark.parametrize(
    ("name", "arguments", "size", "grid"),
    [
        ("test_resnet", {}, (64, 256), (2, 8)),
        slow("levit_128s", {"img_size": (128, 512)}, (128, 512), (2, 8)),
        ("test_vit", {"dynamic_img_size": True}, (64, 256), (4, 16)),
        ("vit_little_patch16_reg4_gap_256", {"dynamic_img_size": True}, (64, 256), (4, 16)),
        slow("volo_d1_224", {"img_size": (64, 256)}, (64, 256), (4, 16)),
        slow("pit_ti_224", {"img_size": (128, 512)}, (128, 512), (4, 16)),
        slow("xcit_nano_12_p8_224", {"img_size": (64, 256)}, (64, 256), (8, 32)),
        slow("tnt_s_patch16_224", {"img_size": (64, 256)}, (64, 256), (4, 16)),
        ("test_vit3", {"dynamic_img_size": True}, (64, 256), (4, 16)),
        ("mobilenetv3_small_050", {}, (128, 512), (4, 16)),
    ],
)
def test_grids_of_images_that_are_not_square(name, arguments, size, grid):
    torch.manual_seed(0)
    built = timm.create_model(name, num_classes=10, **arguments).eval()
    draw_weights(built)
    readout, _ = probe_readout(built, (3, *size), "auto", name)
    assert readout.grid == grid
    assert name == "levit_128s" or quadrants(built, readout, size) >= 9


@pytest.mark.parametrize(
    ("name", "patch", "grid"),
    [
        ("test_vit", (8, 32), (8, 2)),
        ("test_vit", (32, 8), (2, 8)),
        ("test_vit3", (8, 32), (8, 2)),
        ("vit_little_patch16_reg4_gap_256", (8, 32), (8, 2)),
    ],
)
def test_grids_of_patches_that_are_not_square(name, patch, grid):
    torch.manual_seed(0)
    built = toys.randomised(timm.create_model(name, num_classes=10, img_size=64, patch_size=patch))
    assert probe_readout(built, (3, 64, 64), "auto", name)[0].grid == grid


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([[1.0, 3.0 + 1e-3]], [[1.0, 3.0]], 1e-3),  # the standard deviation is 1
        ([[0.3196, 0.3194 + 1e-8]], [[0.3196, 0.3194]], 1e-8 / 0.003195),  # nearly equal numbers are rounded as 0.3
        ([[5.0 + 1e-6]], [[5.0]], 1e-6 / 0.05),  # one number has no standard deviation
        ([[float("nan")]], [[5.0]], float("inf")),
        ([[0.0]], [[0.0]], 0.0),
    ],
)
def test_differences_are_relative_to_a_spread_that_cannot_vanish(found, expected, difference):
    pair = (torch.tensor(values, dtype=torch.float64) for values in (found, expected))
    assert relative_difference(*pair) == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "grid"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2}, "average", (2, 2)),
        ("test_resnet", {}, "average", (5, 5)),
        ("mobilenetv3_small_050", {}, "gated", (7, 7)),
        ("test_vit", {}, "token-writes", (10, 10)),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64}, "token-writes", (4, 4)),
        ("vit_little_patch16_reg4_gap_256", {"img_size": 64, "fc_norm": False}, "average", (4, 4)),
    ],
)
def test_one_class(name, arguments, kind, grid):
    """The gradient of one logit keeps its direction along channels as well as along positions."""
    torch.manual_seed(0)
    built = toys.randomised(timm.create_model(name, num_classes=1, **arguments))
    side = arguments.get("img_size", built.pretrained_cfg["input_size"][-1])
    readout, _ = probe_readout(built, (3, side, side), "auto", name)
    assert (readout.kind, readout.grid) == (kind, grid)


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "unplaced"),
    [
        ("test_vit", {"img_size": 32, "class_token": False, "global_pool": "avg", "fc_norm": False}, "average", ()),
        (
            "vit_little_patch16_reg4_gap_256",
            {"img_size": 64, "pool_include_prefix": True},
            "scaled",
            ("register 1", "register 2", "register 3", "register 4"),
        ),
        (
            "test_vit3",
            {"img_size": 64, "reg_tokens": 2},
            "attention-pool",
            ("register 1", "register 2", "output bias", "MLP write"),
        ),
        ("test_resnet", {"img_size": 32}, "single-row", ("pooled features",)),
    ],
)
def test_names_of_what_has_no_place(name, arguments, kind, unplaced):
    torch.manual_seed(0)
    side = arguments["img_size"]
    arguments = {k: v for k, v in arguments.items() if k != "img_size" or "vit" in name}
    built = toys.randomised(timm.create_model(name, num_classes=10, **arguments))
    readout, _ = probe_readout(built, (3, side, side), "auto", name)
    assert (readout.kind, readout.unplaced) == (kind, unplaced)


def shuffled(attention):
    """An attention whose keys come in another order than its tokens."""
    forward = attention.forward

    def mixed(tokens, **_):
        order = torch.randperm(tokens.shape[1] - 1, generator=torch.Generator().manual_seed(0)) + 1
        return forward(torch.cat([tokens[:, :1], tokens[:, order]], dim=1))

    return mixed


def test_attention_to_tokens_in_another_order_is_not_drawn():
    built, size = network("test_vit", {})
    for block in built.blocks:
        block.attn.forward = shuffled(block.attn)
    assert probe_readout(built, size, "auto", "toy")[0].kind == "single-row"


def test_an_attention_in_the_place_of_an_mlp_is_not_hidden_in_its_row():
    built, size = network("test_vit", {})
    built.blocks[-1].mlp = type(built.blocks[-1].attn)(64).eval()
    assert probe_readout(built, size, "auto", "toy")[0].kind == "single-row"


def test_a_head_that_a_probe_stumbles_over_goes_on_to_the_next_kind(monkeypatch):
    from protonmf_cli.models import backbone

    def stumbling(*_):
        raise IndexError("list index out of range")

    built, size = network("test_resnet", {})
    monkeypatch.setitem(backbone.CANDIDATES, "auto", (stumbling, backbone.image_row))
    assert probe_readout(built, size, "auto", "toy")[0].kind == "image-row"
    monkeypatch.setitem(backbone.CANDIDATES, "auto", (stumbling,))
    with pytest.raises(NotExactError, match="IndexError while probing: list index out of range"):
        probe_readout(built, size, "auto", "toy")


def test_a_head_that_says_nothing_is_refused():
    """Any readout would reproduce it."""
    built, size = network("test_resnet", {})
    torch.nn.init.zeros_(built.fc.weight)
    with pytest.raises(InputError, match="toy gives the same logits to every image: its classifier is not trained"):
        probe_readout(built, size, "auto", "toy")


def test_logits_that_are_no_numbers_are_refused():
    built, size = network("test_resnet", {})
    torch.nn.init.constant_(built.fc.weight, 1e38)
    with pytest.raises(InputError, match="toy gives logits that are no finite numbers: its weights are too large"):
        probe_readout(built, size, "auto", "toy")


def test_a_readout_that_names_other_rows_than_it_has_is_not_taken(monkeypatch):
    from protonmf_cli.models import backbone

    def named(*arguments):
        return replace(backbone.affine_head(*arguments), unplaced=("nothing",))

    built, size = network("test_resnet", {})
    monkeypatch.setitem(backbone.CANDIDATES, "auto", (named,))
    with pytest.raises(NotExactError):
        probe_readout(built, size, "auto", "toy")


def answering(built, features):
    """The same head behind other features."""
    return SimpleNamespace(
        forward_features=lambda _: features, forward_head=built.forward_head, get_submodule=built.get_submodule
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"global_pool": "avgmax"}),
        ("test_convnext", {}),
        ("test_vit2", {}),
        ("mobilenetv3_small_050", {}),
        slow("caformer_s18", {}),
        ("efficientvit_b0", {}),
    ],
)
def test_rows_are_right_on_random_features_too(name, arguments):
    """Deep random networks give nearly constant maps, which would hide a wrong weight of a position."""
    built, size = network(name, arguments)
    readout, _ = probe_readout(built, size, "auto", name)
    with in_float64(built), torch.no_grad():
        features = torch.randn_like(built.forward_features(torch.zeros(2, *size, dtype=torch.float64)))
        exact = readout.to(dtype=torch.float64)
        reading = exact.read(answering(built, features), features)
        # vectors went through float32
        assert relative_difference(exact.logits(reading.rows), reading.logits) < 1e-6


def test_token_writes_name_what_has_no_place_and_last_block_keeps_the_sum():
    built, size = network("vit_small_patch14_reg4_dinov2", {"img_size": 70})
    every, _ = probe_readout(built, size, "all-layers", "dinov2")
    last, _ = probe_readout(built, size, "last-block", "dinov2")
    assert every.unplaced == (
        "class token",
        "register 1",
        "register 2",
        "register 3",
        "register 4",
        "start and biases",
        "MLP writes",
    )
    pixels = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        all_rows, last_rows = (r.read(built, pixels).rows[0] for r in (every, last))
    assert all_rows.shape == last_rows.shape == (25 + 7, 384)
    assert torch.allclose(all_rows.sum(0), last_rows.sum(0), atol=1e-4)
    assert all_rows[:25].norm() > 1.5 * last_rows[:25].norm()


def test_token_writes_are_attention_times_values_times_output_matrix():
    """Against the formula with the weights of a plain transformer with layer scales, written out."""
    built, size = network("deit3_small_patch16_224", {"img_size": 64})
    readout, _ = probe_readout(built, size, "auto", "deit3")
    qkv, blocks = [], list(built.blocks)
    for block in blocks:
        block.attn.qkv.register_forward_hook(lambda _, __, out: qkv.append(out))
    stream = []
    built.norm.register_forward_pre_hook(lambda _, args: stream.append(args[0][:, 0]))
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with in_float64(built), torch.no_grad():
        rows = readout.to(dtype=torch.float64).read(built, pixels).rows
        writes = 0
        for block, made in zip(blocks, qkv, strict=True):
            query, key, value = made.unflatten(2, (3, 6, 64)).permute(2, 0, 3, 1, 4)
            share = torch.einsum("bhd,bhnd->bhn", query[:, :, 0], key) / 8
            matrix = block.attn.proj.weight.unflatten(1, (6, 64))
            written = torch.einsum("bhn,bhnd,ehd->bne", share.softmax(-1), value, matrix)
            writes = writes + written * block.ls1.gamma
        spread = (stream[0].var(dim=1, unbiased=False) + built.norm.eps).sqrt()[:, None, None]
        expected = (writes - writes.mean(dim=2, keepdim=True)) / spread * built.norm.weight
    # scales and norms went through float32
    assert torch.allclose(rows[:, :16], expected[:, 1:], rtol=1e-6, atol=1e-9)
    assert torch.allclose(rows[:, 16], expected[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("strange", "layers"), [(2, 3), (5, 0)])
def test_layers_before_one_that_is_not_understood_stay_in_the_start_row(strange, layers):
    built, size = network("test_vit", {"depth": 6})
    block = built.blocks[strange]
    forward = block.forward
    block.forward = lambda tokens, **_: 1.5 * forward(tokens)
    readout, difference = probe_readout(built, size, "auto", "toy")
    assert difference <= 1e-12
    assert readout.kind == ("token-writes" if layers else "single-row")
    if layers:
        assert [layer.block for layer in readout.stream.layers] == [f"blocks.{n}" for n in range(strange + 1, 6)]


def test_votes_are_columns_of_the_patches_that_win():
    built, size = network("volo_d1_224", {"img_size": 64})
    readout, _ = probe_readout(built, size, "auto", "volo")
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        votes = readout.read(built, pixels).rows[:, :, -10:]
        aux = built.aux_head(built.forward_features(pixels)[:, 1:])
    assert torch.equal((votes != 0).sum(dim=1), torch.ones(2, 10))
    assert torch.allclose(votes.sum(dim=1), aux.amax(dim=1) / 2)
    assert torch.equal(votes.abs().argmax(dim=1), aux.argmax(dim=1))


def test_a_distillation_token_is_named():
    built, size = network("deit_tiny_distilled_patch16_224", {"img_size": 64})
    readout, _ = probe_readout(built, size, "auto", "toy")
    assert readout.unplaced == ("class token", "distillation token", "start and biases", "MLP writes")
    assert readout.width == 2 * 192


def test_cls_is_one_row():
    built, size = network("test_vit", {})
    readout, _ = probe_readout(built, size, "cls", "test_vit")
    assert (readout.kind, readout.grid, readout.unplaced) == ("single-row", None, ("class token",))


def test_image_row_on_request():
    built, size = network("test_resnet", {})
    readout, _ = probe_readout(built, size, "image", "test_resnet")
    assert (readout.kind, readout.vectors.shape) == ("image-row", (10, 96))


@pytest.mark.parametrize("rows", ["all-layers", "cls", "auto"])
def test_refused_with_a_sentence(rows):
    name = "test_resnet"
    built, size = network(name, {})
    if rows == "auto":
        head = built.forward_head
        built.forward_head = lambda features: head(features).square()
    with pytest.raises(
        NotExactError, match=f"the classifier of {name} could not be written as a sum over rows"
    ) as caught:
        probe_readout(built, size, rows, name)
    assert ("rows image" if rows == "auto" else "rows auto") in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda gate, inputs, outputs: torch.ones_like(inputs),
        lambda gate, inputs, outputs: (outputs / inputs).nan_to_num(),  # without phi(0)
        lambda gate, inputs, outputs: torch.where(inputs > 0, 1.0, 0.0),
    ],
)
def test_a_wrong_gate_is_not_taken(monkeypatch, wrong):
    from protonmf_cli.models.readouts.frozen_head import Gate

    built, size = network("efficientvit_b0", {})
    for module in built.head.modules():  # sigmoid(0) is not zero
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Hardswish):
                setattr(module, name, torch.nn.Sigmoid())
    assert probe_readout(built, size, "auto", "toy")[0].kind == "gated"
    monkeypatch.setattr(Gate, "constant", wrong)
    assert probe_readout(built, size, "auto", "toy")[0].kind == "image-row"


def test_gated_rows_follow_the_image():
    """The same place counts differently in another image: its gates are those of the whole image."""
    built, size = network("mobilenetv3_small_050", {})
    readout, _ = probe_readout(built, size, "auto", "toy")
    features = torch.rand(2, *built.forward_features(torch.zeros(1, *size)).shape[1:])
    features[1, :, 0, 0] = features[0, :, 0, 0]
    with torch.no_grad():
        rows = readout.read(answering(built, features), features).rows
    assert not torch.allclose(rows[0, 0], rows[1, 0], rtol=1e-2)


def test_a_wrong_formula_is_refused(monkeypatch):
    """If the probed vectors were off by a hair, the proof in float64 would not pass."""
    from protonmf_cli.models import backbone

    built, size = network("test_resnet", {})
    right = backbone.affine_head

    def wrong(*arguments):
        found = right(*arguments)
        return replace(found, vectors=found.vectors * (1 + 1e-6))

    monkeypatch.setitem(backbone.CANDIDATES, "auto", (wrong,))
    with pytest.raises(NotExactError, match="average rows differ by"):
        probe_readout(built, size, "auto", "toy")


def test_float32_weights_come_back_bit_for_bit():
    built, size = network("test_vit", {})
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    probe_readout(built, size, "auto", "toy")
    for name, tensor in built.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_an_encoder_is_refused_by_name(monkeypatch):
    from protonmf_cli.files.networks import backbones

    torch.manual_seed(0)
    encoder = timm.create_model("qwen3_vit_88m_enc", num_classes=0).eval()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: encoder)
    encoder.num_classes = 4
    with pytest.raises(NotExactError, match="qwen3_vit_88m_enc is an encoder and cannot classify. Choose"):
        backbones.load_backbone(backbones.BackboneRequest(name="qwen3_vit_88m_enc", weights=None, offline=True))


@pytest.mark.parametrize(
    ("name", "arguments", "unplaced"),
    [
        ("vit_little_patch16_reg4_gap_256", {"img_size": 64, "pool_include_prefix": True}, 4),
        ("vit_little_patch16_reg4_gap_256", {"img_size": 64}, 0),
        ("test_resnet", {}, 0),
    ],
)
def test_placed_rows_come_first_in_the_order_of_the_grid(name, arguments, unplaced):
    """Features that are zero but for one patch give rows that are largest at that patch."""
    built, size = network(name, arguments)
    readout, _ = probe_readout(built, size, "auto", name)
    assert len(readout.unplaced) == unplaced
    with torch.no_grad():
        features = 0 * built.forward_features(torch.zeros(1, *size))
        if features.ndim == 4:
            features[0, :, 1, 2] = torch.arange(features.shape[1])
            expected = features.shape[3] + 2
        else:
            features[0, built.num_prefix_tokens + 6] = torch.arange(features.shape[2])
            expected = 6
        assert int(readout.read(answering(built, features), features).rows[0].norm(dim=1).argmax()) == expected
