"""Writes tests/python/templates.json: chat templates as Python's jinja2 renders them, as transformers calls it.

    python tests/python/templates.py > tests/python/templates.json

Needs jinja2 (3.1). The templates are our own; each holds what those of published tokenizers use.
"""

import json
from pathlib import Path

from jinja2.sandbox import ImmutableSandboxedEnvironment

BUILT_IN = Path(__file__).resolve().parents[2] / "src/train/data/templates"

TEMPLATES = {
    "llada": (BUILT_IN / "llada.jinja").read_text().rstrip("\n"),
    "chatml": (BUILT_IN / "chatml.jinja").read_text().rstrip("\n"),
    "blocks": "{% for m in messages %}\n    {% if loop.first %}\n  <<{{ bos_token }}>>\n    {% endif %}\n"
              "  {{ m['role'] }}: {{ m.content | trim }}{{ eos_token }}\n{% endfor %}\n"
              "{% if add_generation_prompt %}\nassistant:\n{% endif %}\n",
    "namespace": "{%- set ns = namespace(system='', count=0) -%}\n{%- for m in messages -%}\n"
                 "{%- if m['role'] == 'system' -%}{%- set ns.system = m['content'] -%}\n{%- else -%}"
                 "{%- set ns.count = ns.count + 1 -%}[{{ ns.count }}|{{ m.role | upper }}]"
                 "{{ m['content'].strip() }}\n{%- endif -%}{%- endfor -%}\n({{ ns.system }})"
                 "{{ '>' if add_generation_prompt else '.' }}",
    "methods": "{% for m in messages %}{% if m['content'].startswith('a') and not loop.last %}A{% endif %}"
               "{{ m['content'].split('\n')[0] }}|{{ m['content'].replace('b', 'c').lstrip() }}|{{ m['content'].rstrip() }}|"
               "{{ m['content'] | length }}|{{ m.role.title() }}|{{ loop.index0 }}{{ '\n' }}{% endfor %}",
    "macro": "{%- macro turn(role, text) -%}\n<{{ role }}>{{ text }}</{{ role }}>\n{%- endmacro -%}\n"
             "{%- for m in messages -%}\n  {{- turn(m.role, m.content) }}\n{% endfor -%}\n"
             "{%- if messages[-1]['role'] == 'user' and messages | length > 1 %} end{% endif -%}",
    "json": "{% for m in messages %}{{ m.content | tojson }}{{ m.role | default('x') }}{{ ', ' if not loop.last }}{% endfor %}"
            "{{ {'a': [1, 2.5, true, none], 'b': {}} | tojson }}{{ messages | tojson }}{{ {'x': [1, []]} | tojson(indent=2) }}",
    "slices": "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}{{ rest | length }}:"
              "{% for m in rest | reverse %}{{ m.content[:3] }}{{ m.content[-2:] }};{% endfor %}"
              "{% if tools is defined %}T{% else %}N{% endif %}{{ messages | map(attribute='role') | join('/') }}",
}

CONVERSATIONS = [
    [("user", "hi")],
    [("user", " a b \n"), ("assistant", "b a\n\n")],
    [("system", "be brief"), ("user", "a \"quoted\" <tag> & more"), ("assistant", "ü—✓"), ("user", "\tb")],
]


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    # transformers replaces the filter: no escapes for HTML.
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None: json.dumps(x, ensure_ascii=ensure_ascii, indent=indent)
    return env


def main():
    out = []
    for name, source in TEMPLATES.items():
        template = environment().from_string(source)
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            for open_ in [False, True]:
                text = template.render(messages=messages, add_generation_prompt=open_, bos_token="<s>", eos_token="</s>")
                out.append({"name": name, "source": source, "messages": messages, "open": open_, "text": text})
    print("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]")


main()
