"""Alembic's entry point; always run from `registry.schema.upgrade`, with an open connection."""

from alembic import context

from registry.tables import Schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Schema.metadata,
    render_as_batch=True,  # SQLite alters a table by rebuilding it
    transactional_ddl=True,  # we say BEGIN ourselves, so SQLite's DDL is transactional too
)
with context.begin_transaction():
    context.run_migrations()
