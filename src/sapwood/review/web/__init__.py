"""The web application: pages that a server renders, one small script, nothing from elsewhere. Needs the extra `web`."""
