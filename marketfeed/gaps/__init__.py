"""What is silent or missing, and its healing: deadlines, supervisor, healer."""
