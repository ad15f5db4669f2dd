"""Trainings on a Ray cluster: driver.py is one attempt, rank.py its part on a node, survey.py looks at the nodes."""
