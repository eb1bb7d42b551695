"""Rule x meta-gradient x layers x start x statistics: what goes together trains, what does not is refused."""

import parts
import pytest


def named(combinations):
    return pytest.mark.parametrize("combination", combinations, ids=", ".join)


@named(parts.covering())
@pytest.mark.filterwarnings("ignore:.*runs as a whole")
def test_every_meta_learned_variable_gets_a_gradient(combination):
    assert parts.faults(combination) == []


@named(parts.covering(refused=True))
def test_what_makes_no_sense_is_refused_with_the_reason(combination):
    with pytest.raises(ValueError, match=parts.REASONS[parts.refusal(*combination)][0]):
        parts.make(combination)


def test_the_page_is_of_these_parts():
    # `python tests/parts.py --write` writes it anew.
    assert parts.PAGE.read_text(encoding="utf-8") == parts.table()
