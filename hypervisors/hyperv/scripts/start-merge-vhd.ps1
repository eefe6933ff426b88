# Has the host write what a differencing disk holds into one below it. { operation, path, destination }
# The file of the differencing disk stays. Called again, it starts only what does not run and has not ended: what may have
# been cut short is merged once more, which writes the same data again. It is Merge-VHD with a job that outlives us.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    if ($argument.operation -notmatch '^[0-9A-Za-z-]{1,64}$') { throw 'StorageAgent.InvalidOperation' }
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $folder = Join-Path -Path $root -ChildPath $argument.operation
    $file = Join-Path -Path $folder -ChildPath 'record.json'
    $draft = Join-Path -Path $folder -ChildPath 'record.new'
    $record = $null
    if (Test-Path -LiteralPath $file) { $record = Get-Content -LiteralPath $file -Raw | ConvertFrom-Json }
    $again = $null -ne $record
    if (-not $again) {
        $disk = Get-VHD -Path $argument.path
        if ([string]$disk.VhdType -ne 'Differencing') { throw 'StorageAgent.NotDifferencing' }
        $null = New-Item -ItemType Directory -Path $folder -Force
        $record = [pscustomobject]@{
            kind = 'merge'
            source = $argument.path
            path = $argument.destination
            partial = $null
            parent = $disk.ParentPath
            job = $null
            ended = $false
        }
        $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
        Move-Item -LiteralPath $draft -Destination $file -Force
    }
    elseif ($record.kind -ne 'merge' -or $record.source -ne $argument.path) { throw 'StorageAgent.OperationReused' }
    $job = $null
    if ($null -ne $record -and $null -ne $record.job) {
        $job = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_StorageJob |
            Where-Object { $_.InstanceID -eq $record.job }
    }
    if (-not $record.ended -and $null -eq $job) {
        if ($again) { Set-VHD -Path $argument.path -ParentPath $record.parent -IgnoreIdMismatch }
        $service = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_ImageManagementService
        $answer = Invoke-CimMethod -InputObject $service -MethodName MergeVirtualHardDisk -Arguments @{
            SourcePath = $argument.path
            DestinationPath = $argument.destination
        }
        if ($answer.ReturnValue -ne 4096 -and $answer.ReturnValue -ne 0) { throw 'StorageAgent.JobNotStarted' }
        if ($answer.ReturnValue -eq 4096) { $record.job = $answer.Job.InstanceID } else { $record.ended = $true }
        $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
        Move-Item -LiteralPath $draft -Destination $file -Force
    }
    $result = @{ started = $true }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
