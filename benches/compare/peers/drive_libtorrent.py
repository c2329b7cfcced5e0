"""libtorrent as the bench drives it: `seed`, `fetch` or `check` of one torrent.

    drive_libtorrent.py seed|fetch|check LISTEN TORRENT SAVE_PATH [PEER...]

`seed` checks what is there and runs until it is killed; `fetch` ends when everything is there;
`check` ends when everything was checked, and says what that alone took.
"""

import sys
import time

import libtorrent as lt


def settings(listen):
    """The preset for fast seeding, and what makes the programs comparable."""
    chosen = dict(lt.high_performance_seed())
    chosen.update(
        listen_interfaces=listen,
        enable_dht=False,
        enable_lsd=False,
        enable_upnp=False,
        enable_natpmp=False,
        enable_incoming_utp=False,
        enable_outgoing_utp=False,
        in_enc_policy=int(lt.enc_policy.pe_enabled),
        out_enc_policy=int(lt.enc_policy.pe_disabled),
        allow_multiple_connections_per_ip=True,
        close_redundant_connections=False,
        connections_limit=10000,
        unchoke_slots_limit=-1,
        active_seeds=-1,
        active_limit=-1,
        alert_mask=int(lt.alert.category_t.status_notification | lt.alert.category_t.error_notification),
    )
    return chosen


def wait_for(session, handle, kind):
    """Until the alert, which may be over already when `handle` says so itself."""
    while True:
        session.wait_for_alert(200)
        for alert in session.pop_alerts():
            if isinstance(alert, kind):
                return
            if isinstance(alert, (lt.torrent_error_alert, lt.listen_failed_alert)):
                sys.exit(str(alert))


def main():
    task, listen, torrent, save_path, *peers = sys.argv[1:]
    session = lt.session(settings(listen))
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = save_path
    params.max_connections = 10000
    params.max_uploads = -1
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    params.flags |= lt.torrent_flags.disable_pex
    started, cpu = time.monotonic(), time.process_time()
    handle = session.add_torrent(params)
    if task == "fetch":
        for peer in peers:
            ip, port = peer.rsplit(":", 1)
            handle.connect_peer((ip, int(port)))
        wait_for(session, handle, lt.torrent_finished_alert)
        return
    wait_for(session, handle, lt.torrent_checked_alert)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    if not handle.status().is_seeding:
        sys.exit("the data is not complete")
    print(f"checked in {seconds:.3f} s, CPU {cpu:.3f} s", flush=True)
    while task == "seed":
        session.wait_for_alert(10000)
        session.pop_alerts()


main()
