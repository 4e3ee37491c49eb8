"""Fields that hold a table: text in the form, TOML to the recipe."""

from studio.app.forms import read_table, sets
from trainers.recipe import apply_sets, preset


def test_lines_become_a_table_and_the_recipe_takes_it():
    table = read_table("mid_block\\..* = 4\n\n.*a=b.* = 0\n")
    assert table == {"mid_block\\..*": 4, ".*a=b.*": 0}
    recipe = apply_sets(preset("sd15", "style"), sets({"adapter.block_ranks": table}))
    assert recipe.adapter.block_ranks == table
    rates = read_table("up_blocks.* = 0.5\nx = 2")
    assert apply_sets(recipe, sets({"optimizer.block_lrs": rates})).optimizer.block_lrs == rates


def test_what_is_no_number_stays_for_the_recipe_to_refuse():
    assert read_table("mid_block = much\nalone") == {"mid_block": "much", "alone": "alone"}
