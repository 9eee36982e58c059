"""Templates of recipes: what they may write, what code they cannot run, and what would take for ever or fill memory."""

import time

import pytest

from pbsd.templates import TemplateError, compile_template, plain

VALUES = {"prompt": "p", "text": "c\n", "items": [1, 2, "z"], "row": {"a": 1, "b": {"c": None}}}


def render(source, **values):
    return compile_template(source, "t").render({**VALUES, **values})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ prompt }}\n\n{{ text }}\n", "p\n\nc\n\n"),
        ("{% for x in items %}{{ loop.index }}{{ x }},{% endfor %}", "11,22,3z,"),
        ("{{ items | join('-') }} {{ items | tojson }} {{ items[:1] }}", '1-2-z [1, 2, "z"] [1]'),
        ("{{ row.a }}{{ row['b'] | tojson }}{{ row.keys() | list }}", "1{\"c\": null}['a', 'b']"),
        ("{{ 'a%s' % 3 }} {{ 'x{}'.format(2) }} {{ prompt * 3 ~ 'q' + 'r' }}", "a3 x2 pppqr"),
        ("{% set ns = namespace(n=0) %}{% for x in items %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{{ text.strip() | upper }}{{ prompt | replace('p', 'q') | indent(2, true) }}", "C  q"),
        ("{{ number }}", str(2**70)),
        ("{% for x in range(3) if x %}{{ x }}{% else %}none{% endfor %}", "12"),
        ("{% macro tell(x) %}<{{ x }}>{% endmacro %}{{ tell(prompt) }}", "<p>"),
        ("{{ long | truncate(15) }}", "word word..."),
        ("{{ row | tojson(ensure_ascii=false) }}{{ '{:,}'.format(1234567) }}", '{"a": 1, "b": {"c": null}}1,234,567'),
        ("{{ nothing | default(1234567) }}{{ [1, 1000000] | max }}{{ row.get(1234567) }}", "12345671000000None"),
        ("{{ 'call 5551234567 %s' % prompt }}{{ number + 1 }}", f"call 5551234567 p{2**70 + 1}"),
    ],
)
def test_what_templates_write(source, text):
    assert render(source, number=2**70, long="word " * 100_000) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ row.__init__.__globals__ }}",
        "{{ row | attr('__class__') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(prompt) }}",
        "{{ ('{0.__class__}' ~ '').format_map({'0': prompt}) }}",
        "{{ function() }}",
        "{{ function.__globals__ }}",
        "{{ items.append(3) }}",
        "{{ row.update({'a': 2}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ items | random }}",
    ],
)
def test_no_code_runs_and_nothing_of_the_row_is_changed(source):
    with pytest.raises(TemplateError, match="^t"):
        render(source, function=lambda: pytest.fail("called"))
    assert VALUES["items"] == [1, 2, "z"] and VALUES["row"]["a"] == 1


DOUBLING = (
    "{{% set ns = namespace(x='a') %}}{{% for i in range(90) %}}{{% set ns.x = {} %}}{{% endfor %}}"
    "{{{{ ns.x | length }}}}"
)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 'a' * 10**9 }}", "repeated to more than 10,000,000"),
        ("{{ items * 99999999 }}", "repeated to more than"),
        ("{{ 99999 * 99999 * 'a' }}", "repeated to more than"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 100,000 times"),
        ("{% for a in long %}{% for b in long %}{% endfor %}{% endfor %}", "more than 100,000 times"),
        ("{% for a in items recursive %}{{ loop(items) }}{% endfor %}", "calls itself without end|100,000 times"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("{{ range(10**9) | list }}", "Range too big"),
        (DOUBLING.format("ns.x ~ ns.x"), "more than 10,000,000"),
        (DOUBLING.format("ns.x + ns.x"), "more than 10,000,000"),
        (DOUBLING.format("[ns.x, ns.x] | join"), "more than 10,000,000"),
        (DOUBLING.format("[ns.x, ns.x]").replace("length", "string"), "more than 10,000,000"),
        (DOUBLING.format("{'a': ns.x, 'b': ns.x}").replace(" | length", ""), "more than 10,000,000"),
        (DOUBLING.format("ns.x.replace('a', 'aa')"), "more than 200,000,000|more than 10,000,000"),
        ("{{ '%9999999d' % 1 }}", "width of more than five digits"),
        ("{{ '{:>9999999}'.format(1) }}", "width of more than five digits"),
        ("{{ '%9999999d' | format(1) }}", "width of more than five digits"),
        ("{{ 'a'.ljust(10000000) }}{{ 'a' | center(10000000) }}", "is given the size 10000000"),
        ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "more than 200,000,000"),
        ("{{ ('a\n' * 99999) | indent(99999) }}", "more than 200,000,000"),
        ("{{ 9**99999 }}", "a power that is too large"),
        ("{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}", "4096 bits"),
        ("{{ '%*d' % (999999999, 1) }}", "is given the size 999999999"),
        ("{{ '{:{w}}'.format(1, w=999999999) }}", "is given the size 999999999"),
        ("{{ {} | tojson(indent=99999) }}", "the indent 99999"),
        (
            "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
            "loops and calls run more than 100,000 times",
        ),
        ("{% for x in items recursive %}{{ loop(items) if loop.depth < 40 }}{% endfor %}", "more than 100,000 times"),
        ("{% for a in range(90000) %}{{ range(90000) | sum }}{% endfor %}", "reads or makes more than 200,000,000"),
        ("{% for a in range(9000) %}{% if long.find('y') %}{% endif %}{% endfor %}", "reads or makes more than"),
        ("".join(f"{{% set a{n} = long ~ {n} %}}" for n in range(2200)), "reads or makes more than 200,000,000"),
        ("{{ items | map(attribute='missing') | list }}", "has no attribute 'missing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ missing }}", "'missing' is undefined; columns are items, long, prompt, row, text"),
    ],
)
def test_what_would_take_for_ever_or_fill_the_memory_ends_at_once(source, reason):
    started = time.process_time()
    with pytest.raises(TemplateError, match=reason):
        render(source, long="x" * 99_999)
    assert time.process_time() - started < 20  # not a speed test: each would take hours


def test_a_template_that_writes_too_much():
    with pytest.raises(TemplateError, match="the text has more than 10,000,000 characters"):
        render("{% for i in range(2000) %}{{ long }}{% endfor %}", long="x" * 99_999)


def test_a_mistake_is_named_with_its_line():
    with pytest.raises(TemplateError, match="teacher_prompt_template, line 2: unexpected"):
        compile_template("a\n{{ prompt ")


def test_rows_are_seen_as_plain_values():
    class Loud(str):
        def upper(self):
            raise AssertionError("called")

    assert render("{{ loud.upper() }}", loud=Loud("a")) == "A"
    assert plain({"a": (1, [Loud("b")]), 2: len}) == {"a": [1, ["b"]], "2": "len"}
