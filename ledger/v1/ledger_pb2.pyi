import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CorrectionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CORRECTION_KIND_UNSPECIFIED: _ClassVar[CorrectionKind]
    CORRECTION_KIND_REVERSAL: _ClassVar[CorrectionKind]
    CORRECTION_KIND_ADJUSTMENT: _ClassVar[CorrectionKind]

class MovementGroup(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVEMENT_GROUP_UNSPECIFIED: _ClassVar[MovementGroup]
    MOVEMENT_GROUP_CAMPAIGN: _ClassVar[MovementGroup]
    MOVEMENT_GROUP_TYPE: _ClassVar[MovementGroup]
    MOVEMENT_GROUP_REWARD_TYPE: _ClassVar[MovementGroup]
    MOVEMENT_GROUP_CATEGORY: _ClassVar[MovementGroup]
CORRECTION_KIND_UNSPECIFIED: CorrectionKind
CORRECTION_KIND_REVERSAL: CorrectionKind
CORRECTION_KIND_ADJUSTMENT: CorrectionKind
MOVEMENT_GROUP_UNSPECIFIED: MovementGroup
MOVEMENT_GROUP_CAMPAIGN: MovementGroup
MOVEMENT_GROUP_TYPE: MovementGroup
MOVEMENT_GROUP_REWARD_TYPE: MovementGroup
MOVEMENT_GROUP_CATEGORY: MovementGroup

class Amount(_message.Message):
    __slots__ = ("currency", "value")
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    currency: str
    value: str
    def __init__(self, currency: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Balance(_message.Message):
    __slots__ = ("user_id", "amount", "version", "posted_at")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POSTED_AT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    amount: Amount
    version: int
    posted_at: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., amount: _Optional[_Union[Amount, _Mapping]] = ..., version: _Optional[int] = ..., posted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetBalanceRequest(_message.Message):
    __slots__ = ("user_id", "currency", "as_of")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    currency: str
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., currency: _Optional[str] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetBalanceResponse(_message.Message):
    __slots__ = ("balance",)
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    balance: Balance
    def __init__(self, balance: _Optional[_Union[Balance, _Mapping]] = ...) -> None: ...

class ListBalancesRequest(_message.Message):
    __slots__ = ("user_id", "as_of")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListBalancesResponse(_message.Message):
    __slots__ = ("balances",)
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    balances: _containers.RepeatedCompositeFieldContainer[Balance]
    def __init__(self, balances: _Optional[_Iterable[_Union[Balance, _Mapping]]] = ...) -> None: ...

class BalanceKey(_message.Message):
    __slots__ = ("user_id", "currency")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    currency: str
    def __init__(self, user_id: _Optional[str] = ..., currency: _Optional[str] = ...) -> None: ...

class BatchGetBalancesRequest(_message.Message):
    __slots__ = ("keys", "as_of")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[BalanceKey]
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, keys: _Optional[_Iterable[_Union[BalanceKey, _Mapping]]] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class BatchGetBalancesResponse(_message.Message):
    __slots__ = ("balances",)
    BALANCES_FIELD_NUMBER: _ClassVar[int]
    balances: _containers.RepeatedCompositeFieldContainer[Balance]
    def __init__(self, balances: _Optional[_Iterable[_Union[Balance, _Mapping]]] = ...) -> None: ...

class ListRewardsRequest(_message.Message):
    __slots__ = ("user_id", "currency", "campaign_id", "type", "start_time", "end_time", "page_size", "page_token")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    currency: str
    campaign_id: str
    type: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    def __init__(self, user_id: _Optional[str] = ..., currency: _Optional[str] = ..., campaign_id: _Optional[str] = ..., type: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRewardsResponse(_message.Message):
    __slots__ = ("rewards", "next_page_token", "corrections")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[Reward]
    next_page_token: str
    corrections: _containers.RepeatedCompositeFieldContainer[Correction]
    def __init__(self, rewards: _Optional[_Iterable[_Union[Reward, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., corrections: _Optional[_Iterable[_Union[Correction, _Mapping]]] = ...) -> None: ...

class GetRewardRequest(_message.Message):
    __slots__ = ("reward_id",)
    REWARD_ID_FIELD_NUMBER: _ClassVar[int]
    reward_id: str
    def __init__(self, reward_id: _Optional[str] = ...) -> None: ...

class GetRewardResponse(_message.Message):
    __slots__ = ("reward",)
    REWARD_FIELD_NUMBER: _ClassVar[int]
    reward: Reward
    def __init__(self, reward: _Optional[_Union[Reward, _Mapping]] = ...) -> None: ...

class Reward(_message.Message):
    __slots__ = ("reward_id", "user_id", "campaign_id", "type", "reward_type", "reward_name", "status", "transaction_id", "category", "details_json", "expires_at", "recorded_at", "posting", "code", "reversed")
    REWARD_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REWARD_TYPE_FIELD_NUMBER: _ClassVar[int]
    REWARD_NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    DETAILS_JSON_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    RECORDED_AT_FIELD_NUMBER: _ClassVar[int]
    POSTING_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    REVERSED_FIELD_NUMBER: _ClassVar[int]
    reward_id: str
    user_id: str
    campaign_id: str
    type: str
    reward_type: str
    reward_name: str
    status: str
    transaction_id: str
    category: str
    details_json: str
    expires_at: _timestamp_pb2.Timestamp
    recorded_at: _timestamp_pb2.Timestamp
    posting: Posting
    code: str
    reversed: Amount
    def __init__(self, reward_id: _Optional[str] = ..., user_id: _Optional[str] = ..., campaign_id: _Optional[str] = ..., type: _Optional[str] = ..., reward_type: _Optional[str] = ..., reward_name: _Optional[str] = ..., status: _Optional[str] = ..., transaction_id: _Optional[str] = ..., category: _Optional[str] = ..., details_json: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., recorded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., posting: _Optional[_Union[Posting, _Mapping]] = ..., code: _Optional[str] = ..., reversed: _Optional[_Union[Amount, _Mapping]] = ...) -> None: ...

class Correction(_message.Message):
    __slots__ = ("key", "kind", "reward_id", "user_id", "reason", "actor", "approver", "posting", "rewards_before")
    KEY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REWARD_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    APPROVER_FIELD_NUMBER: _ClassVar[int]
    POSTING_FIELD_NUMBER: _ClassVar[int]
    REWARDS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    key: str
    kind: CorrectionKind
    reward_id: str
    user_id: str
    reason: str
    actor: str
    approver: str
    posting: Posting
    rewards_before: int
    def __init__(self, key: _Optional[str] = ..., kind: _Optional[_Union[CorrectionKind, str]] = ..., reward_id: _Optional[str] = ..., user_id: _Optional[str] = ..., reason: _Optional[str] = ..., actor: _Optional[str] = ..., approver: _Optional[str] = ..., posting: _Optional[_Union[Posting, _Mapping]] = ..., rewards_before: _Optional[int] = ...) -> None: ...

class Posting(_message.Message):
    __slots__ = ("debit_account", "credit_account", "amount", "version", "balance_after", "posted_at")
    DEBIT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BALANCE_AFTER_FIELD_NUMBER: _ClassVar[int]
    POSTED_AT_FIELD_NUMBER: _ClassVar[int]
    debit_account: str
    credit_account: str
    amount: Amount
    version: int
    balance_after: Amount
    posted_at: _timestamp_pb2.Timestamp
    def __init__(self, debit_account: _Optional[str] = ..., credit_account: _Optional[str] = ..., amount: _Optional[_Union[Amount, _Mapping]] = ..., version: _Optional[int] = ..., balance_after: _Optional[_Union[Amount, _Mapping]] = ..., posted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchRewardsRequest(_message.Message):
    __slots__ = ("token", "from_beginning", "user_id", "currency", "campaign_id", "type")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FROM_BEGINNING_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    token: str
    from_beginning: bool
    user_id: str
    currency: str
    campaign_id: str
    type: str
    def __init__(self, token: _Optional[str] = ..., from_beginning: _Optional[bool] = ..., user_id: _Optional[str] = ..., currency: _Optional[str] = ..., campaign_id: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class WatchRewardsResponse(_message.Message):
    __slots__ = ("rewards", "token", "corrections")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CORRECTIONS_FIELD_NUMBER: _ClassVar[int]
    rewards: _containers.RepeatedCompositeFieldContainer[Reward]
    token: str
    corrections: _containers.RepeatedCompositeFieldContainer[Correction]
    def __init__(self, rewards: _Optional[_Iterable[_Union[Reward, _Mapping]]] = ..., token: _Optional[str] = ..., corrections: _Optional[_Iterable[_Union[Correction, _Mapping]]] = ...) -> None: ...

class ReverseRewardRequest(_message.Message):
    __slots__ = ("reward_id", "amount", "key", "reason", "allow_negative")
    REWARD_ID_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    reward_id: str
    amount: str
    key: str
    reason: str
    allow_negative: bool
    def __init__(self, reward_id: _Optional[str] = ..., amount: _Optional[str] = ..., key: _Optional[str] = ..., reason: _Optional[str] = ..., allow_negative: _Optional[bool] = ...) -> None: ...

class ReverseRewardResponse(_message.Message):
    __slots__ = ("correction",)
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    correction: Correction
    def __init__(self, correction: _Optional[_Union[Correction, _Mapping]] = ...) -> None: ...

class ListCurrencyTotalsRequest(_message.Message):
    __slots__ = ("as_of",)
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListCurrencyTotalsResponse(_message.Message):
    __slots__ = ("totals",)
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    totals: _containers.RepeatedCompositeFieldContainer[CurrencyTotals]
    def __init__(self, totals: _Optional[_Iterable[_Union[CurrencyTotals, _Mapping]]] = ...) -> None: ...

class CurrencyTotals(_message.Message):
    __slots__ = ("debits", "credits", "difference", "rewards", "users")
    DEBITS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    USERS_FIELD_NUMBER: _ClassVar[int]
    debits: Amount
    credits: Amount
    difference: Amount
    rewards: int
    users: int
    def __init__(self, debits: _Optional[_Union[Amount, _Mapping]] = ..., credits: _Optional[_Union[Amount, _Mapping]] = ..., difference: _Optional[_Union[Amount, _Mapping]] = ..., rewards: _Optional[int] = ..., users: _Optional[int] = ...) -> None: ...

class ListMovementsRequest(_message.Message):
    __slots__ = ("start_day", "end_day", "group")
    START_DAY_FIELD_NUMBER: _ClassVar[int]
    END_DAY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    start_day: str
    end_day: str
    group: MovementGroup
    def __init__(self, start_day: _Optional[str] = ..., end_day: _Optional[str] = ..., group: _Optional[_Union[MovementGroup, str]] = ...) -> None: ...

class ListMovementsResponse(_message.Message):
    __slots__ = ("movements", "controls")
    MOVEMENTS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    movements: _containers.RepeatedCompositeFieldContainer[Movement]
    controls: _containers.RepeatedCompositeFieldContainer[MovementControl]
    def __init__(self, movements: _Optional[_Iterable[_Union[Movement, _Mapping]]] = ..., controls: _Optional[_Iterable[_Union[MovementControl, _Mapping]]] = ...) -> None: ...

class Movement(_message.Message):
    __slots__ = ("group", "opening", "rewarded", "reversed", "adjusted", "closing", "rewards", "reversals", "adjustments")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    REWARDED_FIELD_NUMBER: _ClassVar[int]
    REVERSED_FIELD_NUMBER: _ClassVar[int]
    ADJUSTED_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    REVERSALS_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENTS_FIELD_NUMBER: _ClassVar[int]
    group: str
    opening: Amount
    rewarded: Amount
    reversed: Amount
    adjusted: Amount
    closing: Amount
    rewards: int
    reversals: int
    adjustments: int
    def __init__(self, group: _Optional[str] = ..., opening: _Optional[_Union[Amount, _Mapping]] = ..., rewarded: _Optional[_Union[Amount, _Mapping]] = ..., reversed: _Optional[_Union[Amount, _Mapping]] = ..., adjusted: _Optional[_Union[Amount, _Mapping]] = ..., closing: _Optional[_Union[Amount, _Mapping]] = ..., rewards: _Optional[int] = ..., reversals: _Optional[int] = ..., adjustments: _Optional[int] = ...) -> None: ...

class MovementControl(_message.Message):
    __slots__ = ("debits", "credits", "difference", "postings")
    DEBITS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    POSTINGS_FIELD_NUMBER: _ClassVar[int]
    debits: Amount
    credits: Amount
    difference: Amount
    postings: int
    def __init__(self, debits: _Optional[_Union[Amount, _Mapping]] = ..., credits: _Optional[_Union[Amount, _Mapping]] = ..., difference: _Optional[_Union[Amount, _Mapping]] = ..., postings: _Optional[int] = ...) -> None: ...

class GetTrialBalanceRequest(_message.Message):
    __slots__ = ("as_of",)
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    as_of: _timestamp_pb2.Timestamp
    def __init__(self, as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetTrialBalanceResponse(_message.Message):
    __slots__ = ("currencies",)
    CURRENCIES_FIELD_NUMBER: _ClassVar[int]
    currencies: _containers.RepeatedCompositeFieldContainer[TrialBalance]
    def __init__(self, currencies: _Optional[_Iterable[_Union[TrialBalance, _Mapping]]] = ...) -> None: ...

class TrialBalance(_message.Message):
    __slots__ = ("accounts", "debits", "credits", "difference", "postings")
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    DEBITS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    POSTINGS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[AccountKind]
    debits: Amount
    credits: Amount
    difference: Amount
    postings: int
    def __init__(self, accounts: _Optional[_Iterable[_Union[AccountKind, _Mapping]]] = ..., debits: _Optional[_Union[Amount, _Mapping]] = ..., credits: _Optional[_Union[Amount, _Mapping]] = ..., difference: _Optional[_Union[Amount, _Mapping]] = ..., postings: _Optional[int] = ...) -> None: ...

class AccountKind(_message.Message):
    __slots__ = ("kind", "debits", "credits", "balance", "postings")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEBITS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    POSTINGS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    debits: Amount
    credits: Amount
    balance: Amount
    postings: int
    def __init__(self, kind: _Optional[str] = ..., debits: _Optional[_Union[Amount, _Mapping]] = ..., credits: _Optional[_Union[Amount, _Mapping]] = ..., balance: _Optional[_Union[Amount, _Mapping]] = ..., postings: _Optional[int] = ...) -> None: ...
