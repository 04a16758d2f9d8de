"""A borrower that is not ours: libibverbs through pyverbs. It does as it is told, whatever that is.

usage: stranger.py DEVICE ADDRESS        (the address of the GID that it is to use)

Each request is a line of JSON on standard input, each answer one on standard output:
  {"do": "endpoint"}                                     a fresh queue pair, and where it is
  {"do": "connect", "qpn": N, "psn": N, "gid": G, "mtu": code}    connects it
  {"do": "write" | "read" | …, "address": N, "rkey": N, "len": N, "fill": byte}    one request; how it ended, and its buffer
"""

import ipaddress
import json
import pathlib
import random
import sys
import time

import pyverbs.enums as e
from pyverbs.addr import AHAttr, GID, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

BUFFER = 8192
OPCODES = {
    "write": e.IBV_WR_RDMA_WRITE,
    "read": e.IBV_WR_RDMA_READ,
    "send": e.IBV_WR_SEND,
    "send_immediate": e.IBV_WR_SEND_WITH_IMM,
    "fetch_add": e.IBV_WR_ATOMIC_FETCH_AND_ADD,
    "compare_swap": e.IBV_WR_ATOMIC_CMP_AND_SWP,
}


def gid_index(device, address):
    wanted = ipaddress.ip_address(address)
    port = pathlib.Path(f"/sys/class/infiniband/{device}/ports/1")
    for path in sorted((port / "gids").iterdir(), key=lambda path: int(path.name)):
        gid = ipaddress.IPv6Address(path.read_text().strip())
        try:
            kind = (port / "gid_attrs/types" / path.name).read_text().strip()
        except OSError:
            continue
        if kind == "RoCE v2" and (gid.ipv4_mapped or gid) == wanted:
            return int(path.name)
    sys.exit(f"{device} has no RoCE v2 GID for {address}")


class Stranger:
    def __init__(self, device, address):
        self.gid_index = gid_index(device, address)
        self.context = Context(name=device)
        self.pd = PD(self.context)
        self.cq = CQ(self.context, 16)
        self.mr = MR(self.pd, BUFFER, e.IBV_ACCESS_LOCAL_WRITE)
        self.qp = None

    def endpoint(self, _):
        if self.qp:
            self.qp.close()
        caps = QPCap(max_send_wr=4, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
        self.qp = QP(self.pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=caps))
        self.psn = random.randrange(1 << 24)
        return {"qpn": self.qp.qp_num, "psn": self.psn}

    def connect(self, peer):
        route = GlobalRoute(dgid=GID(ipaddress.IPv6Address(peer["gid"]).exploded), sgid_index=self.gid_index)
        route.hop_limit = 64
        attributes = QPAttr(port_num=1)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=1)
        attributes.path_mtu = peer["mtu"]
        attributes.dest_qp_num = peer["qpn"]
        attributes.rq_psn = peer["psn"]
        attributes.sq_psn = self.psn
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = 12
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 14, 5, 0
        self.qp.to_rts(attributes)
        return {}

    def transfer(self, request):
        self.mr.write(bytes([request["fill"]]) * BUFFER, BUFFER)
        opcode = OPCODES[request["do"]]
        atomic = request["do"] in ("fetch_add", "compare_swap")
        sge = SGE(self.mr.buf, 8 if atomic else request["len"], self.mr.lkey)
        work = SendWR(num_sge=1, sg=[sge], opcode=opcode, send_flags=e.IBV_SEND_SIGNALED, imm_data=7)
        if atomic:
            work.set_wr_atomic(request["rkey"], request["address"], 0x0101010101010101, 0x7777777777777777)
        else:
            work.set_wr_rdma(request["rkey"], request["address"])
        self.qp.post_send(work)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            count, completions = self.cq.poll(1)
            if count:
                buffer = self.mr.read(request["len"], 0)
                return {"status": int(completions[0].status), "buffer": sorted(set(buffer))}
        return {"status": None}


stranger = Stranger(*sys.argv[1:])
do = {"endpoint": stranger.endpoint, "connect": stranger.connect} | dict.fromkeys(OPCODES, stranger.transfer)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(do[request["do"]](request)), flush=True)
