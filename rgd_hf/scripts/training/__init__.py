"""The trainings of a recipe: planned, trained or resumed, scored, recorded, pushed."""
