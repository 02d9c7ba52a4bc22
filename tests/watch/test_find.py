"""Names of sites come from layers, and stay when other sites come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from watched_flax_models import residual
from watched_models import IMAGES, TOKENS, X, affine, built, dense, initial, stacked

from relu_study.errors import UserError
from relu_study.watch.find import find_sites
from relu_study.watch.models import as_function

LAYERS = {name: dense(seed, 6, 6) for seed, name in enumerate(("a", "b", "c", "d"))}


def names(fn: Any, *args: Any) -> list[str]:
    return [site.name for site in find_sites(fn, *args)]


def chain(*layers: str, extra: str = "") -> Any:
    def net(params: Any, x: Any) -> Any:
        for name in layers:
            x = jax.nn.relu(affine(params[name], x))
            if name == extra:
                x = jnp.tanh(affine(params["d"], x))
        return x

    return net


def test_a_site_has_the_path_of_its_layer() -> None:
    class Feedforward(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.up, self.down = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.down(nnx.relu(self.up(x)))

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
            self.blocks = nnx.List([Feedforward(rngs) for _ in range(4)])

        def __call__(self, x: Any) -> Any:
            x = nnx.gelu(self.conv1(x))
            for block in self.blocks:
                x = x + block(x)
            return x

    model = as_function(built(Net), {})
    found = find_sites(model.function, model.params, model.state, IMAGES)
    assert [site.name for site in found] == ["conv1", *(f"blocks.{i}.up" for i in range(4))]
    assert [site.activation for site in found] == ["gelu"] + ["relu"] * 4
    assert found[0].shape == (16, 8, 8, 6) and found[0].units == 6 and found[4].units == 8
    assert set(found[4].parameters) == {"blocks.3.up.kernel", "blocks.3.up.bias"}


def test_linen_sites_have_the_names_of_modules() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.relu(nn.Dense(4)(nn.relu(nn.Dense(4)(x))))  # Linen numbers the outer one first

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.tanh(nn.Dense(4, name="head")(Block()(nn.relu(nn.Dense(4)(x)))))

    module = Net()
    variables = initial(module, X)
    expected = ["Dense_0", "Block_0.Dense_1", "Block_0.Dense_0", "head"]
    model = as_function((module, variables), {})
    assert names(model.function, model.params, model.state, X) == expected
    assert names(lambda variables, x: module.apply(variables, x), variables, X) == expected


def test_a_product_without_a_parameter_has_the_name_of_its_linen_module() -> None:
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.relu(x @ jnp.ones((6, 4)))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return Constant(name="fixed")(x)

    assert names(lambda x: Net().apply({}, x), X) == ["fixed"]


def test_a_normalisation_after_the_product_gives_the_name() -> None:
    model = as_function(residual(), {})
    found = find_sites(model.function, model.params, model.state, IMAGES)
    assert [site.name for site in found] == ["norm", "conv2", "head"]
    assert {"conv1.kernel", "norm.scale", "norm.bias"} <= set(found[0].parameters)


def test_another_site_renames_nothing() -> None:
    before = names(chain("a", "b", "c"), LAYERS, X)
    assert before == ["a", "b", "c"]
    assert names(chain("a", "b", "c", extra="a"), LAYERS, X) == ["a", "d", "b", "c"]
    assert names(chain("b", "c"), LAYERS, X) == ["b", "c"]


def test_repeats_are_numbered() -> None:
    assert names(chain("a", "b", "a", "a"), LAYERS, X) == ["a", "b", "a.2", "a.3"]


def test_two_sites_of_one_product_are_repeats() -> None:
    def crelu(params: Any, x: Any) -> Any:
        h = affine(params["a"], x)
        return jnp.concatenate([jax.nn.relu(h), jax.nn.relu(-h)], axis=-1)

    assert names(crelu, LAYERS, X) == ["a", "a.2"]


def test_of_two_products_the_last_gives_the_name() -> None:
    def joined(params: Any, x: Any) -> Any:
        late, early = affine(params["a"], x), affine(params["b"], x)
        return jax.nn.relu(early + late), jax.nn.relu(late)

    assert names(joined, LAYERS, X) == ["b", "a"]


def test_iterations_have_indices() -> None:
    def net(params: Any, x: Any) -> Any:
        def layer(h: Any, layer: Any) -> Any:
            return jax.nn.relu(affine(layer, h)), None

        def outer(h: Any, layers: Any) -> Any:
            return jax.lax.scan(layer, h, layers)[0], None

        return jax.lax.scan(outer, x, params["layers"])[0]

    pairs = [stacked(LAYERS["a"], LAYERS["b"])] * 2
    assert names(net, {"layers": stacked(*pairs)}, X) == ["layers[0][0]", "layers[0][1]", "layers[1][0]", "layers[1][1]"]


def test_an_array_argument_has_its_own_name() -> None:
    assert names(lambda kernel, x: jax.nn.relu(x @ kernel), jnp.ones((6, 4)), X) == ["kernel"]
    assert names(lambda params, x: jax.nn.relu(x @ params[1]), [0.0, jnp.ones((6, 4))], X) == ["1"]


def test_shapes_without_arrays_suffice() -> None:
    shapes = jax.eval_shape(lambda: (LAYERS, X))
    assert names(chain("a", "b"), *shapes) == ["a", "b"]


def test_the_line_is_that_of_the_users_code() -> None:
    lines = {site.line for site in find_sites(chain("a", "b"), LAYERS, X)}
    (line,) = lines
    file, number = line.rsplit(":", 1)
    assert file == __file__ and "jax.nn.relu(affine(params[name], x))" in Path(file).read_text().splitlines()[int(number) - 1]


def test_the_line_of_a_site_inside_flax_is_that_of_the_call() -> None:
    module = nn.Sequential([nn.Dense(4), nn.relu])
    variables = initial(module, X)
    (site,) = find_sites(lambda variables, x: module.apply(variables, x), variables, X)
    assert site.line.startswith(__file__)


def test_units_are_on_the_last_axis_or_the_one_requested() -> None:
    def channels_first(kernel: Any, x: Any) -> Any:
        return jax.nn.relu(jax.lax.conv(x, kernel, (1, 1), "SAME"))

    images, kernel = jnp.ones((2, 3, 8, 10)), jnp.ones((5, 3, 3, 3))
    (site,) = find_sites(channels_first, kernel, images)
    assert site.units == 10
    (site,) = find_sites(channels_first, kernel, images, unit_axis={"kernel": 1})
    assert site.units == 5
    (site,) = find_sites(channels_first, kernel, images, unit_axis={"kernel": -3})
    assert site.units == 5
    with pytest.raises(UserError, match=r"kernle.*kernel"):
        find_sites(channels_first, kernel, images, unit_axis={"kernle": 1})
    with pytest.raises(UserError, match="no axis 4"):
        find_sites(channels_first, kernel, images, unit_axis={"kernel": 4})


def test_a_recurrent_cell_has_a_site_for_every_gate_and_step() -> None:
    module = nn.RNN(nn.GRUCell(4))
    variables = initial(module, TOKENS)
    found = find_sites(lambda variables, x: module.apply(variables, x), variables, TOKENS)
    assert [site.activation for site in found] == ["sigmoid", "sigmoid", "tanh"] * 5


def test_the_parameters_of_earlier_sites_do_not_feed_a_site() -> None:
    def net(params: Any, x: Any) -> Any:
        h = jax.nn.relu(affine(params["a"], x))
        h = jax.nn.relu(h + affine(params["b"], h))
        return jax.nn.relu(affine(params["c"], h) + affine(params["d"], x))

    found = find_sites(net, LAYERS, X)
    assert [set(site.parameters) for site in found] == [{"a.w", "a.b"}, {"b.w", "b.b"}, {"c.w", "c.b", "d.w", "d.b"}]


@pytest.mark.parametrize("phi", [nnx.relu, nnx.hard_sigmoid, nnx.selu])
def test_dropout_in_training_mode_changes_no_name(phi: Any) -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense, self.drop, self.out = (
                nnx.Linear(6, 8, rngs=rngs),
                nnx.Dropout(0.3, rngs=rngs),
                nnx.Linear(8, 2, rngs=rngs),
            )

        def __call__(self, x: Any) -> Any:
            return self.out(self.drop(phi(self.dense(x))))

    graph, state = nnx.split(built(Net))
    (site,) = find_sites(lambda state, x: nnx.merge(graph, state)(x), state, X)
    assert (site.name, site.activation) == ("dense", phi.__name__)


def test_a_constant_scale_is_no_part_of_a_known_activation() -> None:
    assert [site.activation for site in find_sites(lambda w, x: 2 * jnp.tanh(x @ w) / 3, jnp.ones((6, 4)), X)] == ["tanh"]


def test_units_of_a_model_under_vmap_are_on_its_own_last_axis() -> None:
    def net(params: Any, x: Any) -> Any:
        return params["out"] @ jax.nn.relu(params["layer"] @ x)

    params = {"layer": jnp.ones((5, 6)), "out": jnp.ones((2, 5))}
    (site,) = find_sites(lambda params, x: jax.vmap(net, (None, 0))(params, x), params, X)
    assert (site.name, site.units) == ("layer", 5)
