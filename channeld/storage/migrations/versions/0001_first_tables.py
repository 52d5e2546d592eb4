"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "broadcasts",
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("created_seconds", sa.BigInteger(), nullable=False),
        sa.Column("confirmed_height", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("txid", name=op.f("pk_broadcasts")),
    )
    op.create_table(
        "channels",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("channel_id", sa.LargeBinary(length=32), nullable=False),
        sa.Column("peer_id", sa.LargeBinary(length=33), nullable=False),
        sa.Column("phase", sa.String(length=32), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("created_seconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("channel_key", name=op.f("pk_channels")),
        sa.UniqueConstraint("channel_id", name=op.f("uq_channels_channel_id")),
    )
    op.create_index(op.f("ix_channels_peer_id"), "channels", ["peer_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("verb", sa.String(length=32), nullable=False),
        sa.Column("arguments", sa.LargeBinary(length=32), nullable=False),
        sa.Column("reference", sa.LargeBinary(), nullable=True),
        sa.Column("created_seconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "invoices",
        sa.Column("payment_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_seconds", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("payment_hash", name=op.f("pk_invoices")),
    )
    op.create_index(op.f("ix_invoices_created_seconds"), "invoices", ["created_seconds"], unique=False)
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "payments",
        sa.Column(
            "payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("payment_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("live_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_payments")),
        sa.UniqueConstraint("live_hash", name=op.f("uq_payments_live_hash")),
    )
    op.create_index(op.f("ix_payments_payment_hash"), "payments", ["payment_hash"], unique=False)
    op.create_table(
        "peers",
        sa.Column("node_id", sa.LargeBinary(length=33), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("last_connected_seconds", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_peers")),
    )
    op.create_table(
        "preimages",
        sa.Column("payment_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("payment_preimage", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("payment_hash", name=op.f("pk_preimages")),
    )
    op.create_table(
        "adds",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("offered", sa.Boolean(), nullable=False),
        sa.Column("htlc_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_adds_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", "offered", "htlc_id", name=op.f("pk_adds")),
    )
    op.create_table(
        "onions",
        sa.Column("replay_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("htlc_id", sa.BigInteger(), nullable=False),
        sa.Column("cltv_expiry", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_onions_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("replay_key", name=op.f("pk_onions")),
    )
    op.create_index(op.f("ix_onions_cltv_expiry"), "onions", ["cltv_expiry"], unique=False)
    op.create_table(
        "revocable",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("commitment_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_revocable_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", "commitment_index", name=op.f("pk_revocable")),
    )
    op.create_index(op.f("ix_revocable_txid"), "revocable", ["txid"], unique=False)
    op.create_table(
        "watches",
        sa.Column(
            "channel_key", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("vout", sa.Integer(), nullable=False),
        sa.Column("script_pubkey", sa.LargeBinary(), nullable=False),
        sa.Column("confirmed_height", sa.BigInteger(), nullable=True),
        sa.Column("tx_index", sa.BigInteger(), nullable=True),
        sa.Column("amount_sat", sa.BigInteger(), nullable=True),
        sa.Column("spent_height", sa.BigInteger(), nullable=True),
        sa.Column("spending_tx", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["channel_key"],
            ["channels.channel_key"],
            name=op.f("fk_watches_channel_key"),
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("channel_key", name=op.f("pk_watches")),
    )
    op.create_table(
        "wallet_blocks",
        sa.Column("height", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("height"),
    )
    op.create_table(
        "wallet_cursors",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("next_child", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "chain"),
    )
    op.create_table(
        "wallet_meta",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "wallet_reservations",
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("vout", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reservation", sa.Integer(), nullable=False),
        sa.Column("expires_at_seconds", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("txid", "vout"),
    )
    op.create_index(op.f("ix_wallet_reservations_reservation"), "wallet_reservations", ["reservation"], unique=False)
    op.create_table(
        "wallet_scripts",
        sa.Column("script_pubkey", sa.LargeBinary(length=34), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("chain", sa.Integer(), nullable=False),
        sa.Column("child", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("script_pubkey"),
    )
    op.create_table(
        "wallet_txs",
        sa.Column("txid", sa.LargeBinary(length=32), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("block_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("time_seconds", sa.BigInteger(), nullable=False),
        sa.Column("fee_sat", sa.BigInteger(), nullable=True),
        sa.Column("own", sa.Boolean(), nullable=False),
        sa.Column("fixed", sa.Boolean(), nullable=False),
        sa.Column("elastic_vout", sa.Integer(), nullable=True),
        sa.Column("replaced_by", sa.LargeBinary(length=32), nullable=True),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("txid"),
    )
    op.create_index(op.f("ix_wallet_txs_height"), "wallet_txs", ["height"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_wallet_txs_height"), table_name="wallet_txs")
    op.drop_table("wallet_txs")
    op.drop_table("wallet_scripts")
    op.drop_index(op.f("ix_wallet_reservations_reservation"), table_name="wallet_reservations")
    op.drop_table("wallet_reservations")
    op.drop_table("wallet_meta")
    op.drop_table("wallet_cursors")
    op.drop_table("wallet_blocks")
    op.drop_table("watches")
    op.drop_index(op.f("ix_revocable_txid"), table_name="revocable")
    op.drop_table("revocable")
    op.drop_index(op.f("ix_onions_cltv_expiry"), table_name="onions")
    op.drop_table("onions")
    op.drop_table("adds")
    op.drop_table("preimages")
    op.drop_table("peers")
    op.drop_index(op.f("ix_payments_payment_hash"), table_name="payments")
    op.drop_table("payments")
    op.drop_table("meta")
    op.drop_index(op.f("ix_invoices_created_seconds"), table_name="invoices")
    op.drop_table("invoices")
    op.drop_table("idempotency")
    op.drop_index(op.f("ix_channels_peer_id"), table_name="channels")
    op.drop_table("channels")
    op.drop_table("broadcasts")
