"""A libtorrent session for the interop tests: seeds or fetches one torrent, or is a whole DHT.

    lt.py nodes COUNT HOST
    lt.py seed|leech|seed-on TORRENT|LINK SAVE_PATH LISTEN [PEER|dht=NODE|set:NAME=NUMBER]...

LISTEN, PEER and NODE are HOST:PORT, hosts in IPv6 without brackets. With a NODE the DHT is used, which
is entered by it; "set:" changes a setting of the session. Prints "listening PORT" once it does,
"dht" once it knows a node, "seeding" once it can serve and "complete" once everything is there; a
leech ends then, a seed and a leech that seeds on when they are killed. Each peer that was found by an
exchange of peers is told by "pex HOST:PORT". Nodes print "node PORT" of the first one once each
of them knows another.
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


def session_settings(listen, nodes, has_dht=False):
    return {
        "listen_interfaces": listen_address(listen),
        "enable_dht": has_dht or bool(nodes),
        "dht_bootstrap_nodes": ",".join(nodes),
        # Everybody is on one address here.
        "dht_restrict_routing_ips": False,
        "dht_restrict_search_ips": False,
        "dht_prefer_verified_node_ids": False,
        "dht_ignore_dark_internet": False,
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


def run_nodes(count, host):
    sessions, ports = [], []
    for _ in range(count):
        sessions.append(lt.session(session_settings(f"{host}:0", [], True)))
        while not sessions[-1].listen_port():
            time.sleep(0.02)
        ports.append(sessions[-1].listen_port())
    while not all(session.status().dht_nodes for session in sessions):
        for session in sessions:
            for port in ports[:3]:
                if not session.status().dht_nodes and port != session.listen_port():
                    session.add_dht_node((host, port))
        time.sleep(0.5)
    say("node", ports[0])
    while True:
        time.sleep(3600)


def main():
    if sys.argv[1] == "nodes":
        run_nodes(int(sys.argv[2]), sys.argv[3])
    mode, torrent, save_path, listen, *peers = sys.argv[1:]
    nodes = [peer.removeprefix("dht=") for peer in peers if peer.startswith("dht=")]
    changes = [word.removeprefix("set:").split("=") for word in peers if word.startswith("set:")]
    peers = [word for word in peers if not word.startswith(("dht=", "set:"))]
    settings = session_settings(listen, nodes)
    session = lt.session(settings | {name: int(value) for name, value in changes})
    if torrent.startswith("magnet:"):
        params = lt.parse_magnet_uri(torrent)
    else:
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
    asked_at = 0.0
    while True:
        if nodes and time.monotonic() - asked_at > 2:
            asked_at = time.monotonic()
            handle.force_dht_announce()
        for alert in session.pop_alerts():
            print(alert.message(), file=sys.stderr, flush=True)
        for peer in handle.get_peer_info():
            if peer.source & lt.peer_info.pex and peer.ip not in told:
                told.add(peer.ip)
                say("pex", f"{peer.ip[0]}:{peer.ip[1]}")
        status = handle.status()
        port = session.listen_port()
        if port and "listening" not in told:
            told.add("listening")
            say("listening", port)
        if "dht" not in told and session.status().dht_nodes:
            told.add("dht")
            say("dht")
        # A link may select files: then those are all that a leech waits for.
        has_selected = mode == "leech" and status.has_metadata and status.is_finished
        if (status.is_seeding or has_selected) and port and "seeding" not in told:
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
