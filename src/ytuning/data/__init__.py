"""Files, lists and frames become a data set: tables, columns, labels, kinds of task, label texts and splits."""
