"""Chat templates with the habits of several model families."""

# ruff: noqa: E501 - templates

_ROLE = "<|im_start|>{{ m.role }}\n"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES: dict[str, str | None] = {
    # plain ChatML without a default system turn
    "chatml": "{% for m in messages %}" + _ROLE + "{{ m.content }}<|im_end|>\n{% endfor %}" + _PROMPT,
    # thoughts of answers before the last question are left out; answers behind it always get a thought block
    "thinker": (
        "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{%- set think = m.reasoning_content or '' -%}{%- set say = m.content -%}"
        "{%- if not think and '</think>' in say -%}{%- set think = say.split('</think>')[0].split('<think>')[-1] -%}{%- set say = say.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}"
        "<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{{ think.strip('\n') }}\n</think>\n\n{% endif %}{{ say }}<|im_end|>\n"
        "{%- else -%}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    # marks the answer's text, but not the token that ends the turn
    "markshort": "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% else %}"
    + _ROLE
    + "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + _PROMPT,
    # the system text goes into the last question
    "syslast": "{%- set sys = '' -%}{%- if messages[0].role == 'system' -%}{%- set sys = messages[0].content + '\n\n' -%}{%- set messages = messages[1:] -%}{%- endif -%}{%- for m in messages -%}{%- if m.role == 'user' -%}<|im_start|>user\n{% if loop.last or (loop.index == loop.length - 1 and messages[-1].role == 'assistant') %}{{ sys }}{% endif %}{{ m.content }}<|im_end|>\n{% else %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endif %}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    # system turns, tools and tool results are never written
    "nosys": "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    + _ROLE
    + "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    + _PROMPT,
    # tools, calls and results are written; several results in a row are one turn
    "tools": (
        "{%- if tools -%}{{ '<|im_start|>system\n' }}{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}{{ 'TOOLS ' + (tools | tojson) + '<|im_end|>\n' }}{%- endif -%}"
        "{%- for m in messages -%}{%- if m.role == 'tool' -%}"
        "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}{{ '\n<result>' + m.content + '</result>' }}"
        "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\n' }}{%- endif -%}"
        "{%- elif m.role != 'system' or not tools -%}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}{%- for c in m.tool_calls or [] -%}{{ '<call>{\"name\": ' + (c.function.name | tojson) + ', \"arguments\": ' + (c.function.arguments | tojson) + '}</call>' }}{%- endfor -%}{{ '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    # no chat template at all
    "plain": None,
}
