"""Orders: whatever goes wrong, one order is one order, and what is unknown is said to be unknown."""

from __future__ import annotations

import pytest
from upstream_world import World

from aegis.errors import AmbiguousOutcomeError, HttpConnectionError, RejectedError
from aegis.upstream.simulator import Rules

PATH = "/uapi/domestic-stock/v1/trading/order-cash"
BODY = {
    "CANO": "12345678", "ACNT_PRDT_CD": "01", "PDNO": "005930", "ORD_DVSN": "00", "ORD_QTY": "1", "ORD_UNPR": "70000",
    "EXCG_ID_DVSN_CD": "KRX",
}  # fmt: skip


async def buy(world: World, **changes) -> str:
    answer = await world.kis(**changes).request("POST", PATH, "TTTC0012U", body=BODY, timeout=1.0)
    return answer.json()["output"]["ODNO"]


async def test_an_order_is_placed_once(world):
    """The plain case: executed once, its number comes back, and the body is what was given."""
    assert await buy(world) == "0000000001"
    assert world.simulator.state.orders == [BODY]


UNKNOWN = [
    ({"kind": "reset", "executed": True}, 1),
    ({"kind": "reset"}, 0),
    ({"kind": "cut"}, 1),
    ({"kind": "hang", "executed": True}, 1),
    ({"kind": "drip", "seconds": 1.0}, 1),
    ({"kind": "blank-500", "executed": True}, 1),
    ({"kind": "code", "code": "EGW00301", "executed": True}, 1),
    ({"kind": "code", "code": "EGW00302"}, 0),
    ({"kind": "code", "code": "EGW00300"}, 0),
    ({"kind": "html", "executed": True}, 1),
]


@pytest.mark.parametrize(("fault", "executed"), UNKNOWN, ids=str)
async def test_an_unknown_outcome_is_said_to_be_unknown_and_nothing_is_sent_again(world, fault, executed):
    """Lost, cut, silent, blank, or "please check your last transaction": one request, one `AmbiguousOutcomeError`."""
    await world.kis().token()
    world.simulator.fail(service="kis", path="order-cash", **fault)
    with pytest.raises(AmbiguousOutcomeError) as caught:
        await buy(world)
    assert len(world.simulator.state.orders) == executed
    assert world.simulator.report()["kis"]["requests"] == 1
    assert caught.value.attempts == 1
    assert caught.value.code == fault.get("code", caught.value.code)


@pytest.mark.parametrize("rules", [Rules(kis_per_second=1, token_interval_s=0.2)])
async def test_an_order_refused_for_its_pace_is_repeated_and_executed_once(world):
    """EGW00201 comes from the gateway, before anything is executed, so this one POST is sent again."""
    await world.kis().price("005930")
    number = await world.kis().request("POST", PATH, "TTTC0012U", body=BODY, timeout=5.0)
    assert number.attempts > 1
    assert len(world.simulator.state.orders) == 1


async def test_an_order_with_a_stale_token_is_repeated_with_a_fresh_one(world):
    """The gateway refuses the token before anything is executed."""
    client = world.kis()
    await client.price("005930")
    world.simulator.state.tokens.void()
    answer = await client.request("POST", PATH, "TTTC0012U", body=BODY)
    assert answer.json()["output"]["ODNO"] == "0000000001"
    assert len(world.simulator.state.orders) == 1


async def test_an_order_that_cannot_leave_is_no_ambiguous_one(world):
    """Nobody listens: nothing left, so there is nothing to look after; still it is not repeated for ever."""
    client = world.kis(base_url="http://127.0.0.1:1")
    await world.kis().token()
    with pytest.raises(HttpConnectionError):
        await client.request("POST", PATH, "TTTC0012U", body=BODY, timeout=2.0)


async def test_what_kis_rejects_is_rejected_with_its_code_and_words(world):
    """A parameter that is missing, a stock that is not listed: RejectedError, once, with what KIS said."""
    client = world.kis()
    for changes, code in (({"ORD_QTY": ""}, "OPSQ2001"), ({"PDNO": "999999"}, "APBK0400")):
        with pytest.raises(RejectedError) as caught:
            await client.request("POST", PATH, "TTTC0012U", body={**BODY, **changes})
        assert caught.value.code == code
    assert world.simulator.report()["kis"]["requests"] == 2
    assert world.simulator.state.orders == []


async def test_paper_orders_carry_the_paper_transaction(world):
    """The first letter becomes V by itself; quotations keep theirs."""
    world.simulator.change(kis_paper=True)
    assert await buy(world, is_virtual=True) == "0000000001"
    assert (await world.kis(is_virtual=True).price("005930")).price > 0
    assert world.simulator.report()["violations"] == []
    with pytest.raises(RejectedError, match="OPSQ0002"):
        await buy(world)
