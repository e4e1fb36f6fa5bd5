"""Names of repositories with capitals: unique in lower case, shown as first pushed

Revision: 0012
Follows: 0011
"""

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("repository", sa.Column("spelling", sa.String(length=64), nullable=True))


def downgrade() -> None:
    # The repositories stay under their names in lower case.
    op.drop_column("repository", "spelling")
