"""From the store to tables, figures and a page."""
