"""The small page that asks for the token."""

import html

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>brax_viser: token</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto;
        padding: 0 1rem; }}
code {{ background: #8883; border-radius: 4px; padding: 0.1em 0.3em; overflow-wrap: anywhere; }}
form {{ display: flex; gap: 0.5rem; margin: 1.5rem 0; }}
input, button {{ font: inherit; padding: 0.4rem 0.7rem; border: 1px solid #8888;
                 border-radius: 6px; }}
input {{ flex: 1; min-width: 0; }}
button {{ background: #1c7ed6; border-color: #1c7ed6; color: white; }}
</style>
</head>
<body>
<h1>This training asks for a token</h1>
<p>{why}</p>
<form method="get">
<input name="token" type="password" aria-label="Token" placeholder="Token" required autofocus>
<button>Open</button>
</form>
<p>The token is the end of the address that the training has printed where it was started, in a line
such as <code>brax_viser: {address}/?token=...</code>, and of <code>viewer.url</code> in Python.
To choose it yourself, set <code>BRAX_VISER_TOKEN</code>, or <code>Viewer(token=...)</code>.</p>
</body>
</html>
"""

MISSING = "The address that you opened has none."
WRONG = (
    "The one that you or this browser gave is not of this training, which may have been restarted."
)


def asking(address: str, *, wrong: bool) -> str:
    """Returns the page.

    Args:
        address: of the page, without a token.
        wrong: whether a token was given that is not the page's.
    """
    return PAGE.format(why=WRONG if wrong else MISSING, address=html.escape(address))
