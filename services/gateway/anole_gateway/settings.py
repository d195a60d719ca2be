"""What the gateway can be told: addresses and limits."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_shared.settings import PREFIX, Settings
from anole_shared.units import MiB


class GatewaySettings(Settings):
    """Where the REST API listens and how much it takes on."""

    model_config = SettingsConfigDict(env_prefix=f"{PREFIX}GATEWAY_")

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 for all (there is no authentication).",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one."
    )
    max_body_bytes: int = Field(
        default=MiB, ge=1024, le=64 * MiB, description="Longest request body; 413 above."
    )
    max_concurrent_requests: int = Field(
        default=1024, ge=1, description="Completions under way at once; 429 above."
    )
    default_max_tokens: int = Field(
        default=512,
        ge=1,
        description="Tokens of a chat answer whose request names no limit, as far as the model's "
        "context has room.",
    )
    request_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest time one completion may take, all in all; then 504.",
    )
    keep_alive_s: float = Field(
        default=10.0,
        gt=0,
        description="A stream that waits for its first token gets a comment line this often, so "
        "that nothing between here and the client gives the connection up.",
    )
    drain_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long running completions may go on after a stop. Whoever stops the "
        "gateway (docker's stop_grace_period, say) must wait longer than that.",
    )
    retry_after_s: float = Field(
        default=1.0, gt=0, description="What Retry-After says where nobody knows better."
    )
