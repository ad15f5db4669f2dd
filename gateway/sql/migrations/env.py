"""Alembic runs on the connection that gateway.sql.database hands over."""

from alembic import context
from sqlmodel import SQLModel

from gateway.sql import tables  # noqa: F401 (declares the tables)

connection = context.config.attributes["connection"]
if connection.dialect.name == "postgresql":
    # Two gateways that start together would both create the tables. The lock lasts until their transaction's COMMIT.
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7364161)")
context.configure(connection=connection, target_metadata=SQLModel.metadata)
with context.begin_transaction():
    context.run_migrations()
