"""bar, barrier.cluster, mbarrier: phases, counts, deadlocks, spurious returns."""

from __future__ import annotations

import numpy as np
import pytest

from harness.interpreter.errors import DeadlockError, ProtocolError
from harness.interpreter.mbarrier import MBarrier
from harness.interpreter.schedule import seeded
from tests.interpreter.conftest import launch, left_behind, module

WAIT = """
    {{ .reg .pred P1;
    LAB_WAIT: mbarrier.try_wait.parity.shared.b64 P1, [{at}], {parity}, 10000000;
    @P1 bra.uni DONE; bra.uni LAB_WAIT; DONE: }}"""
WARP = "mov.u32 %r0, %tid.x; shr.u32 %r1, %r0, 5; shfl.sync.idx.b32 %r1, %r1, 0, 31, -1; setp.ne.b32 %p0, %r1, 0; mov.b32 %r2, smem;\n"


def test_bar_sync_holds_every_warp_until_all_have_come(schedules):
    """Warp 0 writes, all others read behind the barrier."""
    for schedule in schedules:
        data = np.zeros(128, dtype=np.uint32)
        body = (
            WARP
            + """
        @%p0 bra WAITING; mov.b32 %r3, 77; st.shared.b32 [%r2], %r3;
        WAITING: bar.sync 1, 128; ld.shared.b32 %r4, [%r2];
        mul.wide.u32 %d1, %r0, 4; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d1; st.global.b32 [%d0], %r4;"""
        )
        launch(module(body, ("a",)), (data,), threads=128, shared=64, schedule=schedule)
        assert (data == 77).all()


def test_bar_arrive_does_not_wait():
    data = np.zeros(1, dtype=np.uint32)
    body = (
        WARP
        + """
    @%p0 bra OTHER; bar.sync 3, 64; ld.shared.b32 %r4, [%r2]; ld.param.b64 %d0, [a]; st.global.b32 [%d0], %r4; bra END;
    OTHER: mov.b32 %r3, 5; st.shared.b32 [%r2], %r3; barrier.cta.arrive 3, 64;
    END:"""
    )
    launch(module(body, ("a",)), (data,), threads=64, shared=64)
    assert data[0] == 5


@pytest.mark.parametrize(
    ("body", "threads", "message"),
    [
        ("bar.sync 1, 32; bar.sync 2, 96;", 64, "waits for bar.sync 2 of 96 threads"),
        (WARP + "setp.eq.b32 %p1, %r1, 1; @%p1 bra B; bar.sync 1, 64; bra END; B: bar.sync 1, 96; END:", 64, "earlier warps said 64|96 threads are expected"),
        ("mov.u32 %r0, %tid.x; setp.ne.u32 %p0, %r0, 3; @%p0 bra L; bar.sync 1, 32; L:", 32, "by a part of a warp"),
    ],
)  # fmt: skip
def test_wrong_use_of_bar_is_reported(body, threads, message):
    with pytest.raises((DeadlockError, ProtocolError), match=message):
        launch(module(body), threads=threads, shared=64)


def test_an_mbarrier_completes_when_arrivals_and_bytes_have_come():
    barrier = MBarrier("x", 2)
    barrier.expect(64)
    barrier.arrive()
    assert not barrier.passed(0)
    barrier.arrive()
    assert not barrier.passed(0), "64 bytes are still announced"
    barrier.complete(64)
    assert barrier.passed(0)
    assert not barrier.passed(1)
    barrier.complete(32)  # bytes may come before they are announced
    barrier.expect(32)
    assert barrier.phase == 1
    with pytest.raises(ProtocolError, match="3 arrivals where 2 of 2 are pending"):
        barrier.arrive(3)
    with pytest.raises(ProtocolError, match="range of tx-count"):
        barrier.expect(1 << 20)


PRODUCER = (
    WARP
    + """
    @%p0 bra CONSUMER;
    elect.sync %r5|%p1, -1; not.pred %p2, %p1; @%p2 bra L1; mov.b32 %r6, 1; mbarrier.init.shared.b64 [%r2], %r6; L1: fence.mbarrier_init.release.cluster; bar.sync 0;
    mov.b32 %r3, 77; st.shared.b32 [%r2+64], %r3;
    elect.sync %r5|%p1, -1; not.pred %p2, %p1; @%p2 bra END; mbarrier.arrive.shared.b64 %d5, [%r2]; bra END;
    CONSUMER: bar.sync 0;
    mbarrier.test_wait.parity.shared.b64 %p5, [%r2], 1;
    {wait}
    ld.shared.b32 %r4, [%r2+64]; ld.param.b64 %d0, [a]; st.global.b32 [%d0], %r4;
    END:"""
)


def test_waiting_on_an_mbarrier_in_every_schedule(schedules):
    for schedule in schedules:
        data = np.zeros(1, dtype=np.uint32)
        launch(
            module(PRODUCER.format(wait=WAIT.format(at="%r2", parity=0)), ("a",)),
            (data,),
            threads=64,
            shared=128,
            schedule=schedule,
        )
        assert data[0] == 77


def test_without_the_wait_some_schedule_reads_poison():
    found = set()
    for seed in range(12):
        data = np.zeros(1, dtype=np.uint32)
        launch(
            module(PRODUCER.format(wait=""), ("a",)), (data,), threads=64, shared=128, schedule=seeded(seed)
        )
        found.add(int(data[0]))
    assert found == {77, 0xFFFFFFFF}


def test_a_deadlock_says_who_waits_for_what():
    body = PRODUCER.format(wait=WAIT.format(at="%r2", parity=0)).replace(
        "mbarrier.arrive.shared.b64 %d5, [%r2];", ""
    )
    with pytest.raises(
        DeadlockError, match=r"warp 1 waits for mbarrier 0x400 .* parity 0 \(phase 0, 1 of 1 arrivals"
    ):
        launch(module(body, ("a",)), (np.zeros(1, dtype=np.uint32),), threads=64, shared=128)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mbarrier.arrive.shared.b64 %d0, [%r2];", "before mbarrier.init"),
        (
            "mov.b32 %r1, 8; mbarrier.init.shared.b64 [%r2], %r1; mbarrier.arrive.shared.b64 %d0, [%r2];",
            "32 arrivals where 8 of 8",
        ),
        ("mov.b32 %r1, 0; mbarrier.init.shared.b64 [%r2], %r1;", "count 0 is outside"),
        ("mbarrier.inval.shared.b64 [%r2];", "there is no mbarrier"),
        ("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%r3], 16;", "has no CTA 5"),
    ],
)
def test_wrong_use_of_mbarriers_is_reported(body, message):
    with pytest.raises(ProtocolError, match=message):
        launch(module(f"mov.b32 %r2, smem; mov.b32 %r3, {5 << 24 | 1024}; {body}"), shared=64)


FRESH = "mov.b32 %r2, smem; mov.b32 %r1, 32; mbarrier.init.shared.b64 [%r2], %r1;"


def test_every_lane_announces_its_bytes_and_none_of_them_ends_the_phase():
    warp = left_behind(module(FRESH + "mbarrier.expect_tx.relaxed.cta.shared.b64 [%r2], 16;"))
    (barrier,) = warp.cta.mbarriers.values()
    assert (barrier.phase, barrier.pending, barrier.bytes) == (0, 32, 32 * 16)


def test_an_invalidated_mbarrier_is_none_any_more():
    text = FRESH + "mbarrier.inval.shared.b64 [%r2];"
    assert left_behind(module(text)).cta.mbarriers == {}
    with pytest.raises(ProtocolError, match=r"before mbarrier\.init"):
        launch(module(text + "mbarrier.arrive.shared.b64 %d0, [%r2];"), shared=64)


@pytest.mark.parametrize("how", ["test_wait", "try_wait"])
def test_a_wait_that_is_satisfied_lets_the_warp_go_on_and_leaves_the_phase(how):
    """Of a fresh mbarrier the phase before, of parity 1, is over; once all lanes have arrived that of parity 0 is too."""
    for arrive, parity, phase in (("", 1, 0), ("mbarrier.arrive.shared.b64 %d0, [%r2];", 0, 1)):
        text = f"{FRESH} {arrive} mbarrier.{how}.parity.shared.b64 %p0, [%r2], {parity}; selp.b32 %r3, 1, 0, %p0; st.shared.b32 [%r2+8], %r3;"
        warp = left_behind(module(text))
        (barrier,) = warp.cta.mbarriers.values()
        assert (barrier.phase, barrier.pending, barrier.bytes, barrier.waiters) == (phase, 32, 0, [])
        assert warp.waits_for == ("", None), "the warp stopped"
        assert warp.cta.shared.load(1024 + 8, 4, None) == 1


def test_a_test_wait_that_is_not_satisfied_says_so_without_waiting():
    text = f"{FRESH} mbarrier.test_wait.parity.shared.b64 %p0, [%r2], 0; selp.b32 %r3, 1, 0, %p0; st.shared.b32 [%r2+8], %r3;"
    warp = left_behind(module(text))
    assert warp.waits_for == ("", None)
    assert warp.cta.shared.load(1024 + 8, 4, None) == 0


def test_the_cluster_barrier_and_arrivals_at_the_other_cta(schedules):
    """Each CTA arrives at the mbarrier of the other; nobody may do so before it is initialised there."""
    text = """
    mov.b32 %r2, smem; mov.u32 %r3, %cluster_ctarank; mov.b32 %r1, 32; mbarrier.init.shared.b64 [%r2], %r1;
    BARRIER
    xor.b32 %r4, %r3, 1; mapa.shared::cluster.u32 %r5, %r2, %r4; mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5];
    WAIT
    mov.u32 %r6, %tid.x; mad.lo.s32 %r6, %r3, 32, %r6; mul.wide.u32 %d1, %r6, 4; ld.param.b64 %d0, [a]; add.s64 %d0, %d0, %d1;
    mbarrier.test_wait.parity.shared.b64 %p1, [%r2], 1; selp.b32 %r7, 9, 1, %p1; st.global.b32 [%d0], %r7;
    """.replace("WAIT", WAIT.format(at="%r2", parity=0))
    barrier = "barrier.cluster.arrive.relaxed; barrier.cluster.wait;"
    for schedule in schedules:
        passed = np.zeros(64, dtype=np.uint32)
        launch(
            module(text.replace("BARRIER", barrier), ("a",)),
            (passed,),
            grid=2,
            cluster=2,
            shared=64,
            schedule=schedule,
        )
        assert (passed == 1).all(), (
            "a thread did not get past the wait, or another phase than the first ended"
        )
    early = module(text.replace("BARRIER", ""), ("a",))
    with pytest.raises(ProtocolError, match=r"before mbarrier\.init"):
        launch(early, (np.zeros(64, dtype=np.uint32),), grid=2, cluster=2, shared=64)


def test_a_cta_knows_its_place_in_cluster_and_grid():
    names = ("cluster_ctarank", "cluster_nctarank", "ctaid.x", "nctaid.x", "clusterid.x", "nclusterid.x")
    found = np.zeros((4, len(names)), dtype=np.uint32)
    body = f"ld.param.b64 %d0, [a]; mov.u32 %r0, %ctaid.x; mul.wide.u32 %d1, %r0, {4 * len(names)}; add.s64 %d0, %d0, %d1;"
    body += "".join(
        f"mov.u32 %r1, %{name}; st.global.b32 [%d0+{4 * at}], %r1;" for at, name in enumerate(names)
    )
    launch(module(body, ("a",)), (found,), grid=4, cluster=2)
    assert found.tolist() == [[cta % 2, 2, cta, 4, cta // 2, 2] for cta in range(4)]
