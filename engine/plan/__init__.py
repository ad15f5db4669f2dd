"""Plans a job: what it will run with, the reason for each choice, its steps, its warnings and refusals."""
