"""The journal: tables, rows, batch, writer, view, retention, refused lines."""
