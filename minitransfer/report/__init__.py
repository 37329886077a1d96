"""Pages and notebook displays: text, tables, charts and attention, in one file that fetches nothing; readable on a phone and in the dark.

Reading order: html.py (markup, the page), table.py, chart.py (SVG), parts.py (curves, confusions, examples, manifest), attention.py with attention.js,
tokens.py (a batch). Everything takes plain data; nothing else of the package is imported.
"""
from .attention import attention
from .chart import Points, interval_chart, key, line_chart, scatter
from .html import Display, Html, element, fold, fragment, page, paragraph, section, write_page
from .parts import confusion, curves, facts, manifest, prediction_case, side_by_side, study_page
from .table import Table, in_columns, table, wide
from .tokens import Token, token_rows

__all__ = ["Display", "Html", "Points", "Table", "Token", "attention", "confusion", "curves", "element", "facts", "fold", "fragment", "in_columns", "interval_chart", "key",
           "line_chart", "manifest", "page", "paragraph", "prediction_case", "scatter", "section", "side_by_side", "study_page", "table", "token_rows", "wide", "write_page"]
