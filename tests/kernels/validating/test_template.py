"""Chat templates of strangers: rendered as transformers would, or refused, and never more than some seconds."""

from __future__ import annotations

import pytest

from lora_contract.errors import RegistryError
from lora_kernels.validating import template
from lora_kernels.validating.template import CONVERSATION, render_template


def test_a_template_is_rendered_with_the_tokens_of_its_tokenizer() -> None:
    source = (
        "{{ bos_token }}{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "<{{ message.role }}>{{ message.content | tojson }}{% endfor %}{{ strftime_now('%Y') }}"
    )
    expected = f'<s><user>"{CONVERSATION[0]["content"]}"<assistant>"{CONVERSATION[1]["content"]}"2024-01-01'
    assert render_template(source, {"bos_token": {"content": "<s>"}}) == expected


@pytest.mark.parametrize(
    ("source", "found"),
    [
        # Computed by Jinja while it compiles, in one operation that no signal handler of Python interrupts.
        ("{% set a = 7 ** (10 ** 9) %}x", "1 seconds of processor time"),
        ("{{ 'x' * 10 ** 9 }}", "bytes"),
        ("{{ messages[0].content * 10 ** 9 }}", "bytes"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "1048576 characters"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ raise_exception('no such role') }}", "TemplateError: no such role"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% for %}", "TemplateSyntaxError"),
    ],
)
def test_what_a_template_may_not_do(source: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 1)
    with pytest.raises(RegistryError, match="The chat template .*" + found):
        render_template(source, {})
