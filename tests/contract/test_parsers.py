"""References, digests, canonical JSON, manifests, recipes: what is written is read, and anything else is refused."""

from __future__ import annotations

import json
import math
import pickle
import typing
from functools import partial

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_contract import canonical, json_text, manifest, recipe, reference
from lora_contract.base import BaseFingerprint, BaseTensor, parse_fingerprint
from lora_contract.digest import Digest
from lora_contract.errors import ERRORS, ErrorCode, RegistryError, known_code
from lora_contract.manifest import FileEntry, Manifest
from lora_contract.vocabulary import NewRows

HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
DIGESTS = HEX.map(Digest)
COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|__|_|-{1,3})[a-z0-9]{1,8}){0,3}", fullmatch=True)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=6), inner, max_size=4),
    ),
    max_leaves=12,
)


def refused(code: str, function, *arguments, **keys) -> str:
    with pytest.raises(RegistryError) as caught:
        function(*arguments, **keys)
    assert caught.value.code == code
    return caught.value.detail


@given(
    COMPONENT,
    st.one_of(st.none(), COMPONENT),
    st.one_of(st.none(), TAGS, st.integers(1, 10**6)),
    st.one_of(st.none(), DIGESTS),
)
def test_reference_round_trip(name, namespace, selector, digest):
    text = (f"{namespace}/" if namespace else "") + name
    if selector is not None:
        text += f":v{selector}" if isinstance(selector, int) else f":{selector}"
    if digest is not None:
        text += f"@{digest}"
    try:
        parsed = reference.parse(text)
    except RegistryError as error:
        assert error.code == "invalid-reference"
        assert isinstance(selector, str) or len(name) > 64
        return
    assert reference.parse(str(parsed)) == parsed
    assert (parsed.name, parsed.namespace, parsed.digest) == (name, namespace, digest)
    full = parsed.with_namespace("default")
    assert reference.parse_selector(full.namespace, full.name, full.selector()) == full


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_is_refused(text):
    try:
        parsed = reference.parse(text)
    except RegistryError as error:
        assert error.code == "invalid-reference"
    else:
        assert str(reference.parse(str(parsed))) == str(parsed)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "A_",
        "a//b",
        "a:b:c",
        "a@sha256:12",
        "a:",
        "a b",
        "a\n",
        "a:v0x\n",
        "a..b",
        "é",
        "a:latest2\u202e",
        "a/b/C",
        "-a",
        "a-",
    ],
)
def test_malformed_references(text):
    refused("invalid-reference", reference.parse, text)


def test_names_may_have_capitals_and_namespaces_are_folded():
    parsed = reference.parse("Acme/Qwen2.5-7B-LoRA:Prod")
    assert str(parsed) == "acme/Qwen2.5-7B-LoRA:Prod"
    assert str(parsed.folded()) == "acme/qwen2.5-7b-lora:Prod"
    refused("invalid-reference", reference.check_new_namespace, "API")


@pytest.mark.parametrize("tag", ["latest", "LATEST", "v1", "V12", "v01", "a" * 40, "0123456789abcdef" * 2 + "01234567"])
def test_reserved_tags(tag):
    refused("invalid-reference", reference.check_tag, tag)


def test_reference_golden():
    digest = "sha256:" + "ab" * 32
    parsed = reference.parse(f"acme/sql-writer:prod@{digest}")
    assert (parsed.namespace, parsed.name, parsed.tag, str(parsed.digest)) == ("acme", "sql-writer", "prod", digest)
    assert reference.parse("sql:latest").is_bare
    assert reference.parse("sql:v12").version == 12
    assert reference.parse("sql:v12").is_pinned


@given(st.binary(max_size=64))
def test_digest_round_trip(data):
    digest = Digest.of(data)
    assert Digest.parse(str(digest)) == digest
    assert digest.commit == str(digest)[7:47]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
        "sha512:" + "a" * 64,
        "a" * 64,
    ],
)
def test_malformed_digests(text):
    refused("invalid-request", Digest.parse, text)


def test_digest_golden():
    assert str(Digest.of(b"")) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(JSON)
def test_canonical_round_trip(value):
    data = canonical.dumps(value)
    assert canonical.loads_strict(data, what="It", max_bytes=1 << 20) == value
    assert canonical.dumps(json.loads(json.dumps(value))) == data


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.integers(), max_size=6))
def test_canonical_bytes_do_not_depend_on_order(value):
    assert canonical.dumps(value) == canonical.dumps(dict(reversed(value.items())))


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused(data):
    try:
        value = canonical.loads_strict(data, what="It", max_bytes=100)
    except RegistryError as error:
        assert error.code == "rejected"
    else:
        assert canonical.loads_strict(canonical.dumps(value), what="It", max_bytes=1000) == value


def test_canonical_golden():
    value = {"b": [1, 2.5, True, None], "a": "é\n", "A": {}}
    assert canonical.dumps(value) == '{"A":{},"a":"é\\n","b":[1,2.5,true,null]}'.encode()
    refused("invalid-request", canonical.dumps, math.nan)
    refused("invalid-request", canonical.dumps, "\ud800")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":1,"a":1}', "twice"),
        (b'[{"b":{"a":1,"a":1}}]', "twice"),
        (b"[NaN]", "not a JSON number"),
        (b"[-Infinity]", "not a JSON number"),
        (b"[1e999]", "JSON"),
        (b"\xef\xbb\xbf{}", "not valid"),
        (b'"\xff"', "not valid"),
        (b'"\\ud800"', "not valid"),
        (b"[" * 40 + b"]" * 40, "nested"),
        (b"[1]x", "not valid"),
        (b"", "not valid"),
        (b"[" * 3000, "nested"),
    ],
)
def test_strict_json(data, words):
    assert words in refused("rejected", canonical.loads_strict, data, what="It", max_bytes=10_000)


@given(JSON)
def test_depth_is_counted_outside_of_strings(value):
    def depth(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    measured = json_text.outline(canonical.dumps(value), max_values=10**6)
    assert measured is not None
    assert not measured.deeper_than(depth(value))
    assert depth(value) == 0 or measured.deeper_than(depth(value) - 1)


@given(JSON)
def test_json_is_measured_and_checked_without_being_built(value):
    def count(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, inner))

    def keys(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return (len(value) if isinstance(value, dict) else 0) + sum(map(keys, inner))

    data = canonical.dumps(value)
    measured = json_text.outline(data, max_values=10**6)
    assert measured is not None
    assert measured.keys == keys(value)
    assert count(value) <= measured.values <= 2 * count(value)
    assert json_text.fault(data) is None
    assert json_text.top_level_keys(data) == (set(value) if isinstance(value, dict) else set())


@given(st.binary(max_size=40) | st.text('[]{}",:\\ua1-d8', max_size=40).map(str.encode))
def test_what_is_checked_without_being_built_is_what_is_parsed(data):
    def outcome(check):
        try:
            check(data, what="It", max_bytes=100)
        except RegistryError as error:
            assert error.code == "rejected"
            return False
        return True

    assert outcome(canonical.loads_strict) == outcome(partial(canonical.check_strict, max_values=1000))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@given(st.text('[]{}",:\\a-', max_size=60))
def test_the_outline_does_not_depend_on_blocks(block, text):
    whole = json_text.outline(text.encode(), max_values=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_BLOCK", block)
        assert json_text.outline(text.encode(), max_values=1000) == whole


def test_brackets_in_strings_are_no_depth():
    data = json.dumps({'\\"[[[': '[[[[\\\\"', "x": "\\"}).encode()
    measured = json_text.outline(data, max_values=100)
    assert measured is not None
    assert not measured.deeper_than(1)
    assert measured.deeper_than(0)


PATHS = st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z]{1,4}){0,1}", fullmatch=True)
FILES = st.dictionaries(PATHS, st.tuples(st.integers(0, 1 << 40), DIGESTS), min_size=1, max_size=5)


@given(
    FILES, st.sampled_from(manifest.KINDS), st.one_of(st.none(), DIGESTS), st.one_of(st.none(), DIGESTS), st.booleans()
)
def test_manifest_round_trip(files, kind, base, made_by, absent):
    entries = tuple(FileEntry(path, size, digest) for path, (size, digest) in sorted(files.items()))
    made = Manifest(kind, entries, base=base, recipe=made_by, weights_absent=absent, config={"format": "safetensors"})
    data = made.to_bytes()
    assert manifest.parse(data, made.config_bytes()) == made
    assert manifest.parse(data).files == entries
    document = json.loads(data)
    assert (document["schemaVersion"], document["mediaType"]) == (2, "application/vnd.oci.image.manifest.v1+json")
    assert document["config"]["digest"] == str(Digest.of(made.config_bytes()))


def test_manifest_golden():
    made = Manifest("adapter", (FileEntry("adapter_config.json", 2, Digest.of(b"{}")),), base=Digest("0" * 64))
    expected = (
        '{"annotations":{"dev.lora-reg.base":"sha256:' + "0" * 64 + '","dev.lora-reg.kind":"adapter"},'
        '"artifactType":"application/vnd.cncf.model.manifest.v1+json",'
        '"config":{"digest":"' + str(Digest.of(made.config_bytes())) + '",'
        '"mediaType":"application/vnd.cncf.model.config.v1+json","size":' + str(len(made.config_bytes())) + "},"
        '"layers":[{"annotations":{"org.cncf.model.filepath":"adapter_config.json"},'
        '"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
        '"mediaType":"application/vnd.cncf.model.weight.config.v1.raw","size":2}],'
        '"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
    )
    assert made.to_bytes() == expected.encode()


@given(st.binary(max_size=100))
def test_any_bytes_are_a_manifest_or_refused(data):
    with pytest.raises(RegistryError) as caught:
        manifest.parse(data)
    assert caught.value.code == "rejected"


@given(JSON)
def test_any_json_is_a_manifest_or_refused(value):
    with pytest.raises(RegistryError) as caught:
        manifest.parse(canonical.dumps(value))
    assert caught.value.code == "rejected"


@given(FILES, st.integers(0, 2000), st.integers(0, 255))
def test_a_changed_manifest_is_refused_or_canonical(files, place, byte):
    made = Manifest("adapter", tuple(FileEntry(path, size, digest) for path, (size, digest) in sorted(files.items())))
    data = bytearray(made.to_bytes())
    data[place % len(data)] = byte
    try:
        parsed = manifest.parse(bytes(data), made.config_bytes())
    except RegistryError as error:
        assert error.code in ("rejected", "invalid-request")
    else:
        assert parsed.to_bytes() == bytes(data)


BAD_PATHS = [
    "",
    "/a",
    "a/../b",
    "..",
    "./a",
    "a//b",
    "a\\b",
    "C:a",
    "a\0b",
    "a\nb",
    ".hidden",
    "a/.git/x",
    "a ",
    " a",
    "a.",
    "e\u0301",
    "a\u202eb",
    "a" * 256,
    "a/",
    "\ud800",
    "CON",
    "nul.txt",
    "a/Com1.md",
    "LPT¹.json",
    "aux .md",
    "a?b",
    "a*",
    "<a>",
    "a|b",
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_paths(path):
    refused("rejected", manifest.check_path, path)


@given(st.text(max_size=30))
def test_accepted_paths_stay_below_the_folder(path):
    try:
        manifest.check_path(path)
    except RegistryError as error:
        assert error.code == "rejected"
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert not set(parts) & {"", ".", ".."}
    assert "\0" not in path
    assert "\\" not in path


def test_unsorted_and_folded_files_are_refused():
    def entry(path):
        return FileEntry(path, 1, Digest.of(b""))

    refused("rejected", Manifest, "adapter", (entry("b"), entry("a")))
    refused("rejected", Manifest, "adapter", (entry("a"), entry("a")))
    refused("rejected", Manifest, "adapter", (entry("A"), entry("a")))
    refused("rejected", Manifest, "adapter", ())


def recipes(kind, **fields):
    return st.builds(
        kind, operation_version=st.integers(1, 5), base=DIGESTS.map(str), target=st.just("acme/model"), **fields
    )


def optional(strategy):
    return st.one_of(st.none(), strategy)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
INPUTS = st.lists(st.builds(recipe.RecipeInput, digest=DIGESTS.map(str), weight=FINITE), max_size=3).map(tuple)
DTYPES = st.sampled_from(recipe.OUTPUT_DTYPES)
SEEDS = st.integers(0, 1 << 60)
RANKS = st.integers(1, 4096)
RECIPES = st.one_of(
    recipes(
        recipe.MergeRecipe,
        inputs=INPUTS,
        dtype=optional(DTYPES),
        seed=SEEDS,
        allow_loss=st.booleans(),
        onto=st.sampled_from(["fp", "nf4"]),
        rounding=st.sampled_from(["nearest", "stochastic"]),
        device=st.sampled_from(["cpu", "cuda"]),
    ),
    recipes(
        recipe.ComposeRecipe,
        inputs=INPUTS,
        method=st.sampled_from(["svd", "ties"]),
        parameters=st.dictionaries(
            st.text("abc", min_size=1), optional(st.one_of(st.booleans(), RANKS, FINITE, st.text("ab")))
        ),
        seed=SEEDS,
        dtype=optional(DTYPES),
    ),
    recipes(
        recipe.ExtractRecipe,
        tuned=DIGESTS.map(str),
        base_name=st.just("acme/base"),
        rank=optional(RANKS),
        keep_energy=optional(FINITE),
        max_rank=optional(RANKS),
        targets=optional(st.one_of(st.text("ab."), st.lists(st.text("ab.")).map(tuple))),
        save_changed=st.booleans(),
        seed=SEEDS,
        dtype=DTYPES,
    ),
    recipes(
        recipe.ResizeRecipe,
        adapter=DIGESTS.map(str),
        rank=optional(RANKS),
        keep_energy=optional(FINITE),
        dtype=optional(DTYPES),
    ),
    recipes(recipe.ConvertRecipe, adapter=DIGESTS.map(str), uniform_rank=st.booleans(), dtype=optional(DTYPES)),
    recipes(
        recipe.ResizeBaseRecipe,
        vocab=RANKS,
        rows=st.lists(st.builds(NewRows, tensor=st.text("ab."), dtype=st.just("F32"), data=st.text("ab="))).map(tuple),
    ),
)


# Written by the first release: recipes of merges that people have keep their digest, and with it their job and result.
MERGE_BYTES = (
    b'{"allow_loss":false,"base":"sha256:'
    + b"a" * 64
    + b'","dtype":null,"inputs":[{"digest":"sha256:'
    + b"b" * 64
    + b'",'
    b'"weight":0.5}],"operation":"merge","operation_version":1,"seed":0,"target":"a/b"}'
)
MERGE_DIGEST = "sha256:d9db0fc803c0f2da2475ead356804f5773bf9c0e6a8e6ccb52220abe8eaec9ad"


def test_merges_of_before_keep_their_digest():
    made = recipe.MergeRecipe(
        operation_version=1,
        base="sha256:" + "a" * 64,
        inputs=(recipe.RecipeInput("sha256:" + "b" * 64, 0.5),),
        target="a/b",
    )
    assert made.to_bytes() == MERGE_BYTES
    assert str(made.digest) == MERGE_DIGEST
    assert recipe.parse_recipe(MERGE_BYTES) == made
    assert (made.onto, made.rounding) == ("fp", "nearest")
    digests = {made.digest}
    changes = ({"onto": "nf4"}, {"rounding": "stochastic"}, {"rounding": "stochastic", "seed": 1}, {"device": "cuda"})
    for change in changes:
        digests.add(msgspec.structs.replace(made, **change).digest)
    assert len(digests) == 1 + len(changes)


def test_a_device_is_in_the_recipe_if_it_is_not_the_cpu():
    compose = recipe.ComposeRecipe(
        operation_version=1, base="sha256:" + "a" * 64, inputs=(), target="a/b", method="ties_svd", parameters={}
    )
    assert b"device" not in compose.to_bytes() and recipe.device_of(compose) == "cpu"
    gpu = msgspec.structs.replace(compose, device="cuda")
    assert b'"device":"cuda"' in gpu.to_bytes() and recipe.device_of(recipe.parse_recipe(gpu.to_bytes())) == "cuda"
    resize = recipe.ResizeRecipe(
        operation_version=1, base="b", target="a/b", adapter="c", rank=1, keep_energy=None, dtype=None
    )
    assert recipe.device_of(resize) == "cpu"


def test_a_recipe_of_one_operation_is_none_of_another():
    for operation in recipe.OPERATIONS[1:]:
        refused("invalid-request", recipe.parse_recipe, MERGE_BYTES.replace(b"merge", operation.encode()))
    refused("invalid-request", recipe.parse_recipe, MERGE_BYTES.replace(b"merge", b"melt"))


@given(RECIPES)
def test_recipe_round_trip(made):
    again = recipe.parse_recipe(made.to_bytes())
    assert again == made
    assert again.digest == made.digest
    assert again.to_bytes() == made.to_bytes()


@given(st.binary(max_size=60))
def test_any_bytes_are_a_recipe_or_refused(data):
    refused("invalid-request", recipe.parse_recipe, data)


@given(
    st.lists(
        st.tuples(
            st.text("abc.", min_size=1, max_size=6),
            st.sampled_from(["BF16", "U8"]),
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
        ),
        max_size=5,
        unique_by=lambda row: row[0],
    )
)
def test_fingerprint_round_trip(rows):
    tensors = tuple(BaseTensor(name, dtype, shape, "model.safetensors", 8, 16) for name, dtype, shape in sorted(rows))
    made = BaseFingerprint(
        "LlamaForCausalLM", "llama", {"vocab_size": 3}, tensors, {"config.json": "sha256:00"}, 3, False, None, None
    )
    assert parse_fingerprint(made.to_bytes()) == made
    assert parse_fingerprint(made.to_bytes()).digest == made.digest


def test_the_table_of_errors_is_whole():
    for code, kind in ERRORS.items():
        assert code == code.lower()
        assert 100 <= kind.status < 600
        assert kind.exit in range(1, 11)
        assert kind.hint.endswith(".")


def test_the_table_has_every_code_of_the_type_and_no_other():
    assert list(ERRORS) == list(typing.get_args(ErrorCode))


def test_codes_from_outside_are_known_or_none():
    assert known_code("tag-moved") == "tag-moved"
    for code in ("tag-move", "", None, 404, ["internal"]):
        assert known_code(code) is None


def test_an_error_as_text_has_its_hint():
    error = RegistryError("not-found", "There is no tag prod.")
    assert str(error) == f"There is no tag prod. {ERRORS['not-found'].hint}"
    own = RegistryError("not-found", "There is no tag prod.", hint="Set it first.")
    assert str(own) == str(pickle.loads(pickle.dumps(own))) == "There is no tag prod. Set it first."
