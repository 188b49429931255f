"""The task folder, the job that makes one, and what is done with it: evaluate, add or remove a label, predict."""
