"""A libtorrent session for the interop tests: seeds or fetches one torrent.

    lt.py seed|leech|seed-on TORRENT SAVE_PATH LISTEN [PEER]...

LISTEN and PEER are HOST:PORT, hosts in IPv6 without brackets. Prints "listening PORT" once it does,
"seeding" once it can serve and "complete" once everything is there; a leech ends then, a
seed and a leech that seeds on when they are killed.
"""

import sys
import time

import libtorrent as lt


def split(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def listen_address(text):
    host, port = split(text)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def say(*words):
    print(*words, flush=True)


def main():
    mode, torrent, save_path, listen, *peers = sys.argv[1:]
    session = lt.session(
        {
            "listen_interfaces": listen_address(listen),
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "allow_multiple_connections_per_ip": True,
            "alert_mask": lt.alert.category_t.error_notification
            | lt.alert.category_t.status_notification
            | lt.alert.category_t.peer_notification,
        }
    )
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = save_path
    if mode == "seed":
        params.flags |= lt.torrent_flags.seed_mode
    params.flags &= ~lt.torrent_flags.auto_managed
    params.flags &= ~lt.torrent_flags.paused
    handle = session.add_torrent(params)
    for peer in peers:
        handle.connect_peer(split(peer))
    told = set()
    while True:
        for alert in session.pop_alerts():
            print(alert.message(), file=sys.stderr, flush=True)
        status = handle.status()
        port = session.listen_port()
        if port and "listening" not in told:
            told.add("listening")
            say("listening", port)
        if status.is_seeding and port and "seeding" not in told:
            told.add("seeding")
            say("seeding")
            if mode == "leech":
                break
        time.sleep(0.02)
    # The files are whole once the session has let go of them.
    handle.flush_cache()
    session.remove_torrent(handle)
    del handle
    del session
    say("complete")


main()
