"""Two runs side by side, or two servers that are measured in turn: where is B worse than A?

`runs` reads what is compared, `differences` judges it, `live` measures, `table` prints.
"""
