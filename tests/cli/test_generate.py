"""``generate`` on every backend: options, output and errors."""

from __future__ import annotations

import functools
import json
import os
import shutil
from dataclasses import fields

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from tests.commands import error_of, json_of, run_cli
from tests.conftest import backend_params
from tests.manifests import update_manifest
from vt_core import Generation, Stats, __version__
from vt_core.vocab.task import TaskVocabulary
from vt_core.vocab.token_bytes import tokenizer_digest

pytestmark = pytest.mark.parametrize("backend", backend_params())


@pytest.fixture
def model(tiny):
    return tiny("llama")[1]


@pytest.fixture
def run(backend, model):
    """Runs ``generate`` on the tiny model, or on another one."""

    def run(*arguments, model=model, stdin=None):
        return run_cli(backend, "generate", "--device", "cpu", "--model", model, *arguments, input=stdin)

    return run


def test_verbose_names_tensors_that_are_not_used(run, tiny, tmp_path):
    source = shutil.copytree(tiny("llama")[0], tmp_path / "source")
    file = source / "model.safetensors"
    save_file(load_file(file) | {"v_head.bias": np.ones(1, np.float32)}, file, {"format": "pt"})
    directory = convert(source, tmp_path / "vt", progress=False)
    for options, lines in (["-v"], 1), ([], 0):
        done = run("--raw", "--max-tokens", 2, *options, "abc", model=directory)
        assert done.exit_code == 0, done.stderr
        assert sum("v_head.bias" in line for line in done.stderr.splitlines()) == lines


def test_text_goes_to_stdout_and_summary_to_stderr(run):
    done = run("--max-tokens", 5, "-v", "abc")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert "+ 5 tokens, length" in done.stderr and "head prealloc" in done.stderr
    quiet = run("--max-tokens", 5, "abc")
    assert quiet.stdout == done.stdout and quiet.stderr == ""


def test_weights_may_be_quantized(backend, run):
    asked = ("--max-tokens", 5, "--json")
    if backend == "mlx":
        assert "vt-mlx convert --quantize 4" in error_of(run(*asked, "--quantize", "int4", "abc"))
        return
    plain = json_of(run(*asked, "--dtype", "bfloat16", "abc"))
    for mode in ("int8", "int4"):
        result = json_of(run(*asked, "--quantize", mode, "abc"))
        # A row of 48 values has 96 bytes in bfloat16, and 48 with a scale of four in eight bits.
        assert result["vocab_bytes_resident"] * 96 == plain["vocab_bytes_resident"] * 52
        assert (result["quantization"], result["dtype"], result["generated_tokens"]) == (mode, "bfloat16", 5)


def test_steps_may_be_compiled(backend, run, monkeypatch):
    asked = ("--max-tokens", 5, "--json", "--dtype", "float32")
    if backend == "mlx":
        assert "--compile is for PyTorch" in error_of(run(*asked, "--compile", "abc"))
        return
    import torch

    # Traced, and run without a compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    texts = [json_of(run(*asked, *more, "abc"))["token_ids"] for more in ([], ["--compile"])]
    assert texts[0] == texts[1]


def test_json_is_one_flat_object_with_every_field(backend, run):
    result = json_of(run("--max-tokens", 6, "--json", "--seed", 11, "--temperature", 0.7, "abc"))
    names = {field.name for kind in (Generation, Stats) for field in fields(kind)} - {"stats"}
    assert set(result) == names
    assert (result["generated_tokens"], len(result["token_ids"]), result["finish_reason"]) == (6, 6, "length")
    assert (result["seed"], result["head"], result["backend"]) == (11, "prealloc", backend)
    assert result["vocab_rows"] == 2280 and result["vocab_bytes_full"] == 2280 * 48 * 4
    assert result["ttft_s"] > 0 and result["peak_memory_bytes"] > 1e5
    assert result["tokens_per_s"] == pytest.approx(1 / result["tpot_s"])


@pytest.mark.parametrize("text", ["abc def", "line one\r\nline two\r\n", "tab\tand\rreturn\n"])
def test_prompt_is_the_same_from_argument_file_and_stdin(run, tmp_path, text):
    file = tmp_path / "prompt.txt"
    file.write_bytes(text.encode())
    options = ("--raw", "--json", "--max-tokens", 1)
    expected = json_of(run(*options, text))["prompt_tokens"]
    for done in (
        run(*options, "--prompt-file", file),
        run(*options, stdin=text.encode()),
        run(*options, "-", stdin=text.encode()),
    ):
        assert json_of(done)["prompt_tokens"] == expected


def test_file_names_need_not_be_utf8(run, tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text("abc")
    assert json_of(run("--json", "--max-tokens", 1, "--prompt-file", file))["generated_tokens"] == 1
    file.write_text(" ")
    assert "prompt is empty" in error_of(run("--prompt-file", file))
    file.unlink()
    assert "caf\\udce9.txt: the prompt cannot be read" in error_of(run("--prompt-file", file))


def test_system_raw_and_stop_change_what_is_run(run):
    def result(*extra):
        return json_of(run("--json", "--max-tokens", 12, *extra, "abc"))

    plain, system, raw = result(), result("--system", "be brief"), result("--raw")
    assert raw["prompt_tokens"] < plain["prompt_tokens"] < system["prompt_tokens"]
    stop = plain["text"][3:5]
    stopped = result("--stop", stop)
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_chat_template_gets_its_arguments_and_tools(run, model, tmp_path):
    template = "{{ messages[0].content }}{{ mood }}{% for tool in tools or [] %}{{ tool.name }}{% endfor %}"
    changed = shutil.copytree(model, tmp_path / "model")
    config = json.loads((changed / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (changed / "tokenizer_config.json").write_text(json.dumps(config))
    update_manifest(changed)
    listed = tmp_path / "tools.json"
    listed.write_text('[{"name": "weather"}]')

    def tokens(*extra):
        return json_of(run("--json", "--max-tokens", 1, *extra, "ab ", model=changed))["prompt_tokens"]

    mood, tools = ("--chat-template-kwargs", '{"mood": "sunny"}'), ("--tools", listed)
    plain = tokens()
    assert plain < tokens(*mood) < tokens(*mood, *tools)
    assert plain < tokens(*tools)
    assert "not valid JSON" in error_of(run("--chat-template-kwargs", "mood=sunny", "ab"))
    assert "[1] and not a JSON object" in error_of(run("--chat-template-kwargs", "[1]", "ab"))
    listed.write_text("{}")
    assert "not a list of tools" in error_of(run(*tools, "ab"))
    assert "cannot be read" in error_of(run("--tools", tmp_path / "none.json", "ab"))
    assert run("--raw", *mood, "ab").exit_code == 2


@pytest.mark.parametrize("head", ["prealloc", "split", "rebuild", "full"])
def test_every_head_runs_from_either_store(run, head):
    results = [
        json_of(run("--head", head, "--store", store, "--max-tokens", 4, "--json", "ab"))
        for store in ("lmdb", "ram")
    ]
    assert [(result["head"], result["generated_tokens"]) for result in results] == [(head, 4)] * 2
    assert results[0]["token_ids"] == results[1]["token_ids"]


def test_tile_may_have_any_size(run):
    tokens = []
    for options in ((), ("--tile-mb", 0.000001), ("--tile-mb", 0.003), ("--tile-mb", 64)):
        result = json_of(run("--max-tokens", 8, *options, "--json", "ab"))
        assert result["verifications"] > 0
        tokens.append(result["token_ids"])
    assert tokens[1:] == tokens[:1] * 3
    for size in ("0", "nan", "inf"):
        assert run("--tile-mb", size, "ab").exit_code == 2


def save_task(path, digest, ids):
    TaskVocabulary(
        name=path.stem,
        tokenizer_digest=digest,
        vocab_size=2280,
        prior=0,
        ids=np.array(ids),
        counts=np.ones(len(ids), np.int64),
        examples=1,
    ).save(path)
    return path


def test_static_rows_are_the_union_of_task_vocabularies(run, model, tmp_path):
    digest = tokenizer_digest(model / "tokenizer.json")
    one = save_task(tmp_path / "one.vt.json", digest, [300, 301])
    two = save_task(tmp_path / "two.vt.json", digest, [301, 302])
    options = ("--json", "--max-tokens", 3, "--raw", "ab")
    specials = 3
    assert json_of(run("--task", one, *options))["static_rows"] == 2 + specials
    assert json_of(run("--task", one, "--task", two, *options))["static_rows"] == 3 + specials


def test_task_of_another_tokenizer_is_refused_by_its_digest(run, tmp_path):
    other = save_task(tmp_path / "other.vt.json", "sha256:" + "0" * 64, [1])
    line = error_of(run("--task", other, "hi"))
    assert "tokenizer" in line and "0000" in line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "TMP/nowhere", "hi"], "does not exist"),
        (["--model", "TMP", "hi"], "TMP"),
        (["  \n"], "prompt is empty"),
        (["--raw", "--max-tokens", "100", "zq " * 400], "context of 512; shorten the prompt or lower --max"),
        (["--prompt-file", "TMP/none.txt"], "none.txt: the prompt cannot be read"),
        (["--prompt-file", "TMP/latin1.txt"], "latin1.txt is not UTF-8 text"),
        # Options are checked before the model is looked for.
        (["--model", "TMP/nowhere", "--temperature", "-1", "hi"], "temperature is -1.0"),
        (["--model", "TMP/nowhere", "--stop", "", "hi"], "stop string is empty"),
        (["--task", "TMP/none.vt.json", "hi"], "none.vt.json"),
        (["--device", "abacus", "hi"], "'abacus'"),
        (["--device", "meta", "hi"], "'meta'"),
        (["--raw", "--system", "x", "hi"], "system message"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(run, tmp_path, arguments, sentence):
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    given = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    assert sentence.replace("TMP", str(tmp_path)) in error_of(run(*given))


@pytest.mark.parametrize("given", [b"", b" \n", b"caf\xe9", b"\xff\xfeh\0i\0"])
def test_standard_input_without_text_is_one_line_and_code_2(run, given):
    assert error_of(run(stdin=given)).startswith(("vt-", "prompt"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path / "vocab.lmdb" / "data.mdb", 5000),
        lambda path: edit(path / "vt.json", '"format_version": ', '"format_version": 99'),
        lambda path: (path / "vt.json").write_text("{"),
        lambda path: (path / "tokenizer.json").unlink(),
        # The size stays the same, so that only reading the file can find this.
        lambda path: overwrite(path / "model.safetensors", b"x" * 16),
    ],
    ids=["truncated", "version", "json", "tokenizer", "weights"],
)
def test_damaged_model_directory_is_refused_by_name(run, model, tmp_path, damage):
    broken = shutil.copytree(model, tmp_path / "broken")
    damage(broken)
    assert str(broken) in error_of(run("hi", model=broken))


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def overwrite(file, content):
    with open(file, "r+b") as opened:
        opened.write(content)


def test_version(backend):
    assert run_cli(backend, "--version").output == f"vt-{backend}, version {__version__}\n"


def test_task_is_taken_from_the_collection_by_name(run, model, tmp_path, monkeypatch):
    digest = json.loads((model / "vt.json").read_text())["tokenizer_digest"]
    (tmp_path / f"tiny-{digest[:12]}").mkdir()
    file = tmp_path / f"tiny-{digest[:12]}" / "letters.vt.json"
    ids = np.arange(5, 25)
    TaskVocabulary("letters", digest, 300, ids, ids * 0).save(file)
    monkeypatch.setenv("VT_VOCABULARIES", str(tmp_path))
    named = run("-v", "--json", "--max-tokens", 1, "--task", "letters", "--learn", "abc")
    assert f"task letters: {file}" in named.stderr
    assert list(file.parent.iterdir()) == [file]  # what is learned goes elsewhere
    given = json_of(run("--json", "--max-tokens", 1, "--task", file, "abc"))
    assert json_of(named)["static_rows"] == given["static_rows"]
    assert "which has letters" in error_of(run("--task", "digits", "abc"))


SCHEMA = {"enum": ["abc", "de"]}


def test_answers_follow_a_schema_an_expression_or_a_grammar(run, tmp_path):
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text('start: "x" | "yz"')
    for options, texts in (
        (("--json-schema", json.dumps(SCHEMA)), ['"abc"', '"de"']),
        (("--json-schema", schema), ['"abc"', '"de"']),
        (("--regex", "[ab]{3}"), ["aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"]),
        (("--grammar", grammar), ["x", "yz"]),
    ):
        result = json_of(run("--json", *options, "abc"))
        assert result["text"] in texts and result["finish_reason"] == "stop"
        assert result["certain"] + result["gathered"] + result["scanned"] > 0
    assert "grammar: " in run("-v", "--regex", "a", "abc").stderr


def test_grammars_that_cannot_be_followed_are_refused(run, tmp_path):
    for options, sentence in (
        (("--json-schema", '{"uniqueItems": true}'), "uses uniqueItems, which cannot be enforced"),
        (("--json-schema", "{"), "json_schema"),
        (("--json-schema", tmp_path / "none.json"), "none.json: the JSON schema cannot be read"),
        (("--grammar", tmp_path / "none.lark"), "none.lark: the grammar cannot be read"),
        (("--regex", "("), "regex cannot be enforced"),
        (("--regex", "a", "--stop", "b"), "stop does not go with regex"),
    ):
        assert sentence in error_of(run(*options, "abc"))
