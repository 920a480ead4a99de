"""Text as words: analysis, stems, and classes of words."""
