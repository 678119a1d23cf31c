import asyncio

from ledger.client import AsyncLedgerClient


async def main() -> None:
    async with AsyncLedgerClient("127.0.0.1:50051") as ledger:
        dollars, points = await asyncio.gather(
            ledger.get_balance("test-8-june-9", "USD"),
            ledger.get_balance("test-8-june-9", "POINTS"),
        )
        print(dollars.amount, "USD and", points.amount, "POINTS")

        async for reward in ledger.list_rewards("test-8-june-9", currency="USD"):
            print(reward.reward_id, reward.reward_name, reward.recorded_at.date())


asyncio.run(main())
