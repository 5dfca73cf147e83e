"""A program as torchrun starts it: members meet at MASTER_ADDR:MASTER_PORT by plain sockets and sum a number up."""

PROGRAM = r"""
import json, os, socket, struct, sys, time
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
mine = 10 ** rank
def whole(sock, n=8):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more: sys.exit(f"rank {rank}: a peer is gone")
        data += more
    return struct.unpack(">q", data)[0]
if rank == 0:
    server = socket.create_server(("", place[1]), reuse_port=False)
    peers = [server.accept()[0] for _ in range(size - 1)]
    total = mine + sum(whole(p) for p in peers)
    for p in peers: p.sendall(struct.pack(">q", total))
else:
    end = time.time() + 60
    while True:
        try:
            peer = socket.create_connection(place, timeout=60); break
        except OSError:
            if time.time() > end: raise
            time.sleep(0.05)
    peer.sendall(struct.pack(">q", mine)); total = whole(peer)
shown = {n: os.environ.get(n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "CFAB_GANG_RANK",
    "CFAB_GANG_SIZE", "CFAB_GANG_ADDRESSES", "PET_NNODES", "MASTER_PORT", "CFAB_NODE_TEST")}
print(json.dumps({"sum": total, **shown}), flush=True)
if os.environ.get("THEN") == "wait":
    time.sleep(600)
if os.environ.get("THEN") == "fail of rank 1":
    # Others that notice fail, too, and which of them is first depends on the hosts: here they do not.
    time.sleep(600) if rank != 1 else sys.exit(7)
"""
