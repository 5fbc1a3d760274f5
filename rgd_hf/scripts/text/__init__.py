"""Recipes of texts: tasks of GLUE, columns and labels, chats, batches of equal lengths."""
