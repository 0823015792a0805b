-- One step about one Idempotency-Key. Atomic, like every script; a replica that is not heard of any more can take no second one.
--
-- KEYS: the key's hash; the account and its members (hashes, see `call.lua`, read only).
-- ARGV: what to do, replica, life, number of the create, SHA-256 of its body, lease in us, how long it is kept in ms; then the answer, where there
-- is one: status, headers, body, 1 if it started a job.
-- States: entered (it waits for its turn), sending (it may have been sent), unknown (nobody will know), said; free (given back, and kept for a
-- minute against calls of its create that come late).
local key, account, members = KEYS[1], KEYS[2], KEYS[3]
local op, id, life, n, asked, lease, kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local owner = id .. ' ' .. life .. ' ' .. n
local newer = newer_than_this(account)
if newer then return newer end

local function get(field) return redis.call('HGET', key, field) end
local state, holder = get('state'), get('owner')
if state == 'free' then
    if holder == owner and (op == 'enter' or op == 'begin') then return { 'runs' } end
    -- Told again after a loss, and overtaken by what gave the key back.
    if (op == 'sending' or op == 'unknown') and string.sub(holder, 1, #id + #life + 1) == id .. ' ' .. life then return { 'done' } end
    state = nil
end

-- For ARGV[7] from now on.
local function put(to)
    redis.call('HSET', key, 'state', to, 'owner', owner, 'asked', asked)
    redis.call('PEXPIRE', key, kept)
    return { 'yours' }
end

-- Whether the replica that has it still calls.
local function alive()
    local of, its_life = string.match(holder, '^(%S+) (%S+) ')
    local since = census(account, members, lease)
    local _, seen = since(of, its_life)
    return seen ~= nil and seen <= 3 * lease
end

if op == 'enter' then
    if not state then return put('entered') end
    if get('asked') ~= asked then return { 'other' } end
    if state == 'said' then return { 'said', get('status'), get('headers'), get('body'), get('accepted') } end
    if state == 'unknown' then return { 'unknown' } end
    if holder == owner then return { 'yours' } end
    if alive() then return { 'runs' } end
    if state == 'entered' then return put('entered') end
    return { 'unknown' }
end

if op == 'begin' then
    -- Not there any more: all was lost, and whoever had an answer has told it again since.
    if not state or (holder == owner and (state == 'entered' or state == 'sending')) then return put('sending') end
    return { 'runs' }
end

if op == 'forget' then
    if not state or (holder == owner and state ~= 'said') then
        put('free')
        redis.call('PEXPIRE', key, 60000)
    end
    return { 'done' }
end

-- What is told late or again changes no answer. Who has only entered has not sent; an earlier process of this replica told what it knew.
local own = not state or state == 'entered' or string.sub(holder, 1, #id + 1) == id .. ' '
if op == 'sending' or op == 'unknown' then
    if own and state ~= 'said' then put(op) end
    return { 'done' }
end
if (own or state == 'unknown') and state ~= 'said' then
    put('said')
    redis.call('HSET', key, 'status', ARGV[8], 'headers', ARGV[9], 'body', ARGV[10], 'accepted', ARGV[11])
end
return { 'done' }
