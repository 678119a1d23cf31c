from ledger.client import LedgerClient, RewardNotFound, Unavailable

with LedgerClient("127.0.0.1:50051", timeout_seconds=2) as ledger:
    balance = ledger.get_balance("test-8-june-9", "USD")
    print(balance.amount, balance.currency, "after", balance.version, "postings")

    for reward in ledger.list_rewards("test-8-june-9", page_size=100):
        print(reward.reward_id, reward.posting.amount if reward.posting else "nothing")

    try:
        ledger.get_reward("no-such-reward")
    except RewardNotFound as error:
        print(error.reason)
    except Unavailable:
        print("try again later")
