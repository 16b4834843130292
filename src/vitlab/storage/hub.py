"""Check that the Hugging Face Hub can be reached. Its client would try six times for each file."""

import ssl
import urllib.error
import urllib.request

TIMEOUT = 5  # seconds


def hub_problem() -> str:
    """Why the Hub can't be reached; empty if it can. One attempt, of a few seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
    except OSError as error:
        reason = getattr(error, "reason", error)
        # an HTTP error is an answer; and the Hub's client may have its own certificates
        if not isinstance(error, urllib.error.HTTPError) and not isinstance(reason, ssl.SSLError):
            return f"{constants.ENDPOINT} can't be reached ({reason})"
    return ""
