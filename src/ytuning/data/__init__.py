"""From files, lists and frames to a data set: tables, columns, labels, kinds of task, label texts and splits."""
