import random

from bespeak.training.packing import Lexicon, standing
from bespeak.training.personal import FIELDS, personal_conversations

OTHERS = ("I collect stamps.", "My aunt paints.", "I never fly.")


def test_every_word_of_a_target_is_in_the_query_or_the_statement():
    for made in personal_conversations(300, OTHERS, random.Random(0)):
        (target,) = made.targets
        lexicon = Lexicon(target.query, [target.query, *made.statements])
        assert all(stands for _, stands in standing(target.rewrite, lexicon)), target


def test_two_in_three_queries_use_a_word_of_the_statement():
    made = list(personal_conversations(300, OTHERS, random.Random(0)))
    changed = [
        conversation for conversation in made if conversation.targets[0].query != conversation.targets[0].rewrite
    ]
    assert len(changed) == 200
    for conversation in changed:
        (used,), (target,) = conversation.used, conversation.targets
        assert used in conversation.statements
        added = set(target.rewrite.split()) - set(target.query.split())
        assert any(word.strip("?") in used for word in added)


def test_statements_of_others_are_mixed_in():
    made = list(personal_conversations(100, OTHERS, random.Random(0)))
    assert any(len(conversation.statements) > 2 for conversation in made)
    assert {text for conversation in made for text in conversation.statements} > set(OTHERS)


def test_every_query_marks_the_place_of_its_phrase():
    for field in FIELDS:
        assert all(query.count("{}") == 1 for query in field.queries)
        assert all(statement.count("{}") == 1 for statement in field.statements)
